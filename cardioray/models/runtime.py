"""Running a trained network: eager PyTorch, or OpenVINO on CPUs, behind one interface."""

from __future__ import annotations

import logging
import threading
import warnings
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cardioray.machine import bf16_flags, cpu_flags

Floats = NDArray[np.float32]

FEATURES = "features"
IR_FILE = "model.xml"


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bf16 on a device; "auto" does where the hardware has it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(bf16_flags(cpu_flags()))


def fast_layout(model: nn.Module) -> nn.Module:
    """The network with channels last in the memory of its kernels, of pictures or of clips."""
    of_clips = any(parameter.ndim == 5 for parameter in model.parameters())
    return model.to(memory_format=torch.channels_last_3d if of_clips else torch.channels_last)


class Runtime(Protocol):
    """Arrays in, outputs of every head and pooled features out."""

    def run(self, arrays: tuple[NDArray[Any], ...]) -> dict[str, Floats]:
        """Run a batch.

        Args:
            arrays: the task's columns in order, each (B, ...), uint8.

        Returns:
            Per target a (B,) array of logits or values, and "features" (B, D).
        """


class FeatureModel(Protocol):
    """What a network has beside `nn.Module`: outputs together with the features they came from."""

    def forward_with_features(self, *arrays: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Outputs of every head, each (B,), and pooled features (B, D)."""


class TorchRuntime:
    """The network as it was trained; bf16 autocast where asked for."""

    def __init__(self, model: nn.Module, *, device: torch.device, bf16: bool) -> None:
        ready = fast_layout(model.to(device).eval())
        self._model = cast(FeatureModel, ready)
        self._device = device
        self._bf16 = bf16

    @torch.inference_mode()
    def run(self, arrays: tuple[NDArray[Any], ...]) -> dict[str, Floats]:
        """See `Runtime.run`."""
        # Arrays that came through Ray's object store are read-only; PyTorch wants its own.
        tensors = [torch.tensor(a, device=self._device) for a in arrays]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            outputs, features = self._model.forward_with_features(*tensors)
        named: dict[str, Tensor] = {**outputs, FEATURES: features}
        return {name: value.float().cpu().numpy() for name, value in named.items()}


class OpenVinoRuntime:
    """The network as OpenVINO IR, compiled for this CPU when it is loaded.

    Threads may share it; their batches run one after the other.
    """

    def __init__(self, folder: Path, *, bf16: bool, num_threads: int | None = None) -> None:
        import openvino as ov  # of no use where a network is trained

        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # Every process would tie its threads to the first cores of the machine, and replicas
            # and actors beside one another would share these and leave the others idle.
            "ENABLE_CPU_PINNING": False,
        }
        if num_threads is not None:
            properties["INFERENCE_NUM_THREADS"] = num_threads
        self._compiled = ov.Core().compile_model(folder / IR_FILE, "CPU", properties)
        self._request = self._compiled.create_infer_request()
        self._lock = threading.Lock()  # OpenVINO refuses a second call while the first one runs
        self._names = [output.get_any_name() for output in self._compiled.outputs]

    def run(self, arrays: tuple[NDArray[Any], ...]) -> dict[str, Floats]:
        """See `Runtime.run`."""
        inputs = [np.ascontiguousarray(a) for a in arrays]
        with self._lock:
            results = self._request.infer(inputs, share_inputs=True)
            values = [np.array(results[output], np.float32) for output in self._compiled.outputs]
        return dict(zip(self._names, values, strict=True))


class _Exportable(nn.Module):
    """A network whose outputs are a flat tuple, as tracing needs it."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        outputs, features = cast(FeatureModel, self.model).forward_with_features(*arrays)
        return (*(outputs[name] for name in self.names), features)


class NotExportableError(Exception):
    """OpenVINO has no words for a part of a network; says which."""


def export_openvino(
    model: nn.Module, names: tuple[str, ...], example: tuple[NDArray[np.uint8], ...], folder: Path
) -> None:
    """Write a network as OpenVINO IR with any batch size and fp32 weights.

    Args:
        model: in eval mode.
        names: its heads.
        example: a batch of at least two samples, as the network takes it.
        folder: where model.xml and model.bin go.

    Raises:
        NotExportableError: when OpenVINO cannot express the network.
    """
    import openvino as ov
    from openvino.frontend import OpConversionFailure

    tensors = tuple(torch.from_numpy(array) for array in example)
    exportable = _Exportable(model.eval(), names).eval()
    with torch.no_grad(), warnings.catch_warnings():
        # OpenVINO traces with torch.jit, which is for its makers to change.
        warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)
        # The export is for samples of this shape alone.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python (integer|boolean)")
        level = logging.root.level
        try:
            converted = ov.convert_model(
                exportable,
                example_input=tensors,
                input=[(ov.PartialShape([-1, *array.shape[1:]]), ov.Type.u8) for array in example],
            )
        except OpConversionFailure as error:
            failed = [line for line in str(error).splitlines() if line.startswith("--")]
            raise NotExportableError("; ".join(failed) or "unknown operation") from error
        finally:
            # A conversion that fails leaves all loggers of the process to tell of errors alone.
            logging.root.setLevel(level)
    for output, name in zip(converted.outputs, (*names, FEATURES), strict=True):
        output.set_names({name})
    folder.mkdir(parents=True, exist_ok=True)
    ov.save_model(converted, folder / IR_FILE, compress_to_fp16=False)
