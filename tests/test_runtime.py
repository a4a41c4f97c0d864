"""Networks as OpenVINO runs them: beside others on the same machine."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cardioray.models.runtime import OpenVinoRuntime, export_openvino


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 32, 5, padding=2)

    def forward_with_features(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self.layer(pictures.permute(0, 3, 1, 2).float()).mean(dim=(2, 3))
        return {"answer": features.sum(dim=1)}, features


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_ties_no_thread_to_a_core(tmp_path: Path, threads: int) -> None:
    pictures = np.zeros((2, 96, 96, 3), np.uint8)
    torch.manual_seed(0)
    export_openvino(Network(), ("answer",), (pictures,), tmp_path)
    runtime = OpenVinoRuntime(tmp_path, bf16=False, num_threads=threads)
    free = os.sched_getaffinity(0)
    tied: set[frozenset[int]] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for thread in Path("/proc/self/task").iterdir():
                try:
                    tied.add(frozenset(os.sched_getaffinity(int(thread.name))))
                except ProcessLookupError:
                    continue

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        for _ in range(60):
            runtime.run((pictures,))
    finally:
        over.set()
        watching.join()
    assert tied == {frozenset(free)}
