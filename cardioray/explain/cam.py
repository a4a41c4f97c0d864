"""Class activation maps of image classifiers, and pictures that show them.

The maps come from the grad-cam package. What is added here: the layer is found for any
convolutional backbone, the class that was answered is explained (not always the positive one),
the model that is explained stays as it was, and Score-CAM is bounded.
"""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, ScoreCAM
from torch import Tensor, nn

from cardioray.models.backbones import NoFeatureMap
from cardioray.models.classifier import ImageClassifier
from cardioray.models.ecg import EcgModel
from cardioray.registry import Registry, unknown_name

UInt8Image = NDArray[np.uint8]
Heat = NDArray[np.float32]

# The published FFR system scored its ten strongest channels (max_N = 10).
SCORE_CAM_CHANNELS = 10

# A map with fewer positions a side says next to nothing about where the evidence is.
MIN_POSITIONS = 3


class _FasterScoreCAM(ScoreCAM):  # type: ignore[misc]
    """Score-CAM over the channels that vary most over the picture; the others get no weight.

    All channels would cost one forward pass each, up to 2,048. The choice by variation is that of
    Faster Score-CAM (https://github.com/tabayashi0117/Score-CAM), which the FFR system used.
    """

    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: Sequence[Callable[[Tensor], Tensor]],
        activations: NDArray[np.float32],
        grads: None,
    ) -> NDArray[np.float32]:
        """Softmax of the outputs for the picture masked by each chosen channel; (1, channels)."""
        spread = activations[0].std(axis=(1, 2))
        chosen = np.argsort(-spread, kind="stable")[:SCORE_CAM_CHANNELS]
        maps = torch.from_numpy(activations[:, chosen]).to(input_tensor)
        masks = nn.functional.interpolate(maps, size=input_tensor.shape[-2:], mode="bilinear")[0]
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        masks = (masks - low) / (high - low).clamp(min=1e-8)
        with torch.no_grad():
            scores = self.model(input_tensor * masks[:, None])[:, 0]
        weights = np.zeros(activations.shape[:2], np.float32)
        weights[0, chosen] = torch.softmax(scores, dim=0).cpu().numpy()
        return weights


@dataclass(frozen=True, kw_only=True)
class CamMethod:
    """A way to weigh the channels of a feature map.

    Attributes:
        title: name as papers print it.
        paper: where it was described.
        algorithm: its class, made from a model and a list of layers.
    """

    title: str
    paper: str
    algorithm: Any


METHODS: Registry[CamMethod] = Registry("heat-map method")
METHODS.add(
    "gradcam",
    CamMethod(
        title="Grad-CAM",
        paper="Selvaraju et al., ICCV 2017, doi:10.1109/ICCV.2017.74",
        algorithm=GradCAM,
    ),
)
METHODS.add(
    "gradcam++",
    CamMethod(
        title="Grad-CAM++",
        paper="Chattopadhay et al., WACV 2018, doi:10.1109/WACV.2018.00097",
        algorithm=GradCAMPlusPlus,
    ),
)
METHODS.add(
    "scorecam",
    CamMethod(
        title="Score-CAM",
        paper="Wang et al., CVPR Workshops 2020, doi:10.1109/CVPRW50498.2020.00020",
        algorithm=_FasterScoreCAM,
    ),
)


class Explainer:
    """Makes heat maps of one model; keep it where several are wanted.

    It works on a copy of the model's structure that shares its weights. Hooks, gradients and modes
    of the model are never touched, so it can go on answering in other threads meanwhile; heat maps
    of one explainer are made one at a time.
    """

    def __init__(self, model: ImageClassifier | EcgModel) -> None:
        # A deep copy that finds its tensors "copied already": the structure is new, weights shared.
        shared: dict[int, Any] = {
            id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
        }
        shared |= {id(buffer): buffer for buffer in model.buffers()}
        self._output = _OneOutput(copy.deepcopy(model, shared)).eval()
        self._layers: dict[tuple[int, ...], nn.Module] = {}
        self._lock = threading.Lock()

    def class_activation(
        self,
        image: UInt8Image,
        target_name: str,
        method: str,
        *,
        prediction: int | None,
        beside: tuple[NDArray[np.uint8], ...] = (),
    ) -> Heat:
        """Where the evidence for an answer lies; see `class_activation`.

        `beside` is what the model takes beside the picture, (1, ...) each.
        """
        known = METHODS.get(method)
        if image.dtype != np.uint8 or image.ndim != 3:
            raise ValueError(
                f"A uint8 picture of shape (H, W, C) is needed, not {image.dtype} "
                f"of shape {image.shape}."
            )
        device = next(self._output.parameters()).device
        # Masks of Score-CAM multiply this, so that what they hide becomes black.
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255.0
        with self._lock, torch.inference_mode(False), torch.enable_grad():
            self._output.target_name = target_name
            self._output.beside = tuple(torch.tensor(each, device=device) for each in beside)
            self._output.sign = -1.0 if prediction == 0 else 1.0
            if image.shape not in self._layers:
                self._layers[image.shape] = _last_feature_map(self._output, pixels)
            return self._heat(known, self._layers[image.shape], pixels)

    def _heat(self, method: CamMethod, layer: nn.Module, pixels: Tensor) -> Heat:
        # Gradients start at the layer: nothing before it needs a backward pass.
        cut = layer.register_forward_hook(lambda _m, _i, out: out.detach().requires_grad_().clone())
        cam = method.algorithm(self._output, [layer])
        try:
            heat: Heat = cam(pixels, targets=[lambda output: output[0]])[0]
        finally:
            cam.activations_and_grads.release()
            cut.remove()
        return np.clip(heat, 0.0, 1.0).astype(np.float32)


class _OneOutput(nn.Module):
    """The output to explain, with its sign, as (B, 1); takes (B, C, H, W) in [0, 1]."""

    def __init__(self, model: ImageClassifier | EcgModel) -> None:
        super().__init__()
        self.model = model
        self.target_name = ""
        self.beside: tuple[Tensor, ...] = ()
        self.sign = 1.0

    def forward(self, pixels: Tensor) -> Tensor:
        # Score-CAM shows several pictures at a time.
        beside = (each.expand(len(pixels), *each.shape[1:]) for each in self.beside)
        outputs = self.model(pixels.permute(0, 2, 3, 1), *beside)
        if self.target_name not in outputs:
            raise unknown_name("target", self.target_name, outputs)
        value: Tensor = self.sign * outputs[self.target_name]
        return value[:, None]


def class_activation(
    model: ImageClassifier,
    image: UInt8Image,
    target_name: str,
    method: str,
    *,
    prediction: int | None,
) -> Heat:
    """Where in a picture the evidence for an answer lies.

    The last feature map with at least three positions a side is used: at small sizes the last one
    of an Inception network is a single position, and one of its earlier maps is taken.

    Args:
        model: any mode; it is explained as it is in eval mode, and left as it was.
        image: uint8 (H, W, C), preprocessed as the model takes it.
        target_name: the head to explain.
        method: one of `METHODS`.
        prediction: the class that was answered, 1 or 0 (then what lowers the logit is shown); None
            for a number, where what raises it is shown.

    Returns:
        float32 (H, W) in [0, 1], scaled to its own largest value; all zero when no position speaks
        for the answer.

    Raises:
        ValueError: for an unknown method or target, another kind of picture, or a backbone that
            has no convolutional feature map.
    """
    return Explainer(model).class_activation(image, target_name, method, prediction=prediction)


def _last_feature_map(output: _OneOutput, pixels: Tensor) -> nn.Module:
    """The deepest of the layers timm names as a backbone's feature maps that is large enough."""
    net = output.model.backbone.net
    records = getattr(net, "feature_info", None) or []
    wanted = {r["module"]: r["num_chs"] for r in getattr(records, "info", records)}
    sizes: dict[str, tuple[int, ...]] = {}
    layers = {name: module for name, module in net.named_modules() if name in wanted}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.ndim == 4 and out.shape[1] == wanted[name]:
                sizes[name] = tuple(out.shape[2:])

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            output(pixels)
    finally:
        for handle in handles:
            handle.remove()
    large = [name for name, size in sizes.items() if min(size) >= MIN_POSITIONS]
    if not large:
        raise NoFeatureMap(
            f"{output.model.info.title} has no convolutional feature map of at least "
            f"{MIN_POSITIONS} x {MIN_POSITIONS} positions for a picture of "
            f"{pixels.shape[3]} x {pixels.shape[2]} px; heat maps need one."
        )
    layer: nn.Module = layers[large[-1]]
    return layer


def to_source(
    heat: Heat, source_shape: tuple[int, int], fit: Literal["squash", "pad", "crop"]
) -> Heat:
    """A heat map of a preprocessed picture, laid back over the original one.

    Args:
        heat: (H, W) in [0, 1], of the square picture the model saw.
        source_shape: height and width of the original in px.
        fit: how preprocessing made the original square (`ImagePreprocess.fit`); what "crop" cut
            off gets no heat.

    Returns:
        float32 (height, width) in [0, 1].
    """
    height, width = source_shape
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        placed = np.zeros(source_shape, np.float32)
        placed[top : top + side, left : left + side] = _resized(heat, side, side)
        return placed
    if fit == "pad":
        scale = heat.shape[0] / max(height, width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        top, left = (heat.shape[0] - inner[0]) // 2, (heat.shape[1] - inner[1]) // 2
        heat = heat[top : top + inner[0], left : left + inner[1]]
    return _resized(heat, height, width)


def overlay(image: UInt8Image, heat: Heat, alpha: float = 0.5) -> UInt8Image:
    """A picture with its heat map laid over it.

    The colours are Matplotlib's inferno, whose lightness rises evenly. The more heat, the more of
    the colour: what is cold stays as it was.

    Args:
        image: uint8 (H, W), (H, W, 1) or (H, W, 3), any size.
        heat: in [0, 1], of the whole picture; resized to it.
        alpha: share of the colour where the heat is 1, from 0 to 1.

    Returns:
        uint8 RGB (H, W, 3) at the picture's size.

    Raises:
        ValueError: when `alpha` is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}.")
    height, width = image.shape[:2]
    grey = image.ndim == 2 or image.shape[2] == 1
    rgb = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2RGB) if grey else image
    warm = _resized(heat, height, width)
    share = alpha * warm[..., None]
    mixed = (1 - share) * rgb + share * _inferno(warm)
    blended: UInt8Image = np.rint(mixed).astype(np.uint8)
    return blended


@dataclass(frozen=True, eq=False)
class Explanation:
    """One picture with its heat map.

    Attributes:
        image: uint8, the original picture.
        heat: in [0, 1], of the whole picture.
        title: the answer, such as "FFR<=0.80, probability 0.83".
    """

    image: UInt8Image
    heat: Heat
    title: str


def explain_grid(explanations: Sequence[Explanation], alpha: float = 0.5) -> bytes:
    """Pictures, heat maps and overlays side by side, one row an explanation, as PNG bytes.

    Args:
        explanations: at least one.
        alpha: as in `overlay`.
    """
    assert explanations
    rows = len(explanations)
    figure = Figure(figsize=(9.6, 3.5 * rows), dpi=100, layout="constrained")
    for axes, explanation in zip(
        figure.subplots(rows, 3, squeeze=False), explanations, strict=True
    ):
        height, width = explanation.image.shape[:2]
        heat = _resized(explanation.heat, height, width)
        axes[0].imshow(np.squeeze(explanation.image), cmap="gray", vmin=0, vmax=255)
        shown = axes[1].imshow(heat, cmap="inferno", vmin=0, vmax=1)
        axes[2].imshow(overlay(explanation.image, explanation.heat, alpha))
        figure.colorbar(shown, ax=axes[1], fraction=0.046, pad=0.02)
        for panel, title in zip(axes, ("picture", "heat map", explanation.title), strict=True):
            panel.set_title(title, fontsize=10)
            panel.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _resized(heat: Heat, height: int, width: int) -> Heat:
    if heat.shape == (height, width):
        return heat
    resized = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)


def _inferno(heat: Heat) -> UInt8Image:
    levels = np.rint(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    rgb: UInt8Image = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
    return rgb
