"""What a network costs: parameters, arithmetic and time for one sample."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cardioray.models.runtime import fast_layout

REPEATS = 9


@dataclass(frozen=True)
class ModelCost:
    """Cost of one forward pass.

    Attributes:
        parameters_millions: all parameters.
        gflops: 1e9 floating-point operations a sample, a multiply-add counted as two.
        latency_ms: median CPU time for one sample, eager PyTorch, with all threads of the process.
    """

    parameters_millions: float
    gflops: float
    latency_ms: float


@torch.inference_mode()
def count_gflops(model: nn.Module, example: tuple[Tensor, ...]) -> float:
    """1e9 floating-point operations of one forward pass, a multiply-add counted as two.

    Args:
        model: any weights, in eval mode; on the meta device nothing is computed.
        example: its inputs with batch size 1, on the same device.
    """
    with FlopCounterMode(display=False) as counter:
        model(*example)
    operations: int = counter.get_total_flops()
    return operations / 1e9


@torch.inference_mode()
def measure_cost(model: nn.Module, example: tuple[Tensor, ...], *, bf16: bool) -> ModelCost:
    """Measure a network on one sample.

    Args:
        model: any weights; put into eval mode.
        example: its inputs with batch size 1.
        bf16: time it under bf16 autocast, as it would run.
    """
    model = fast_layout(model.eval())
    gflops = count_gflops(model, example)
    times = []
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            model(*example)
            times.append(time.perf_counter() - started)
    return ModelCost(
        parameters_millions=sum(p.numel() for p in model.parameters()) / 1e6,
        gflops=gflops,
        latency_ms=1000 * statistics.median(times[1:]),
    )
