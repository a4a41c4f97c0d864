"""What the peers share: the network of a bundle, and the way from an upload to its input."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

import cardioray
from cardioray.models.classifier import ImageClassifier

BUNDLE_VARIABLE = "CARDIORAY_BENCHMARK_BUNDLE"


def bundle_folder() -> Path:
    """The bundle a peer serves."""
    return Path(os.environ[BUNDLE_VARIABLE])


def load_network() -> tuple[nn.Module, Callable[[NDArray[np.uint8]], Tensor]]:
    """The network as notebooks have it: eager PyTorch, fp32, eval mode, channels first.

    Returns:
        The network, from (B, C, H, W) to logits by target, and torchvision's transform that makes
        one of its inputs (C, H, W) from a picture.
    """
    model = cardioray.load(bundle_folder(), runtime="torch", precision="fp32").model
    assert isinstance(model, ImageClassifier)
    mean, std = (values.flatten().tolist() for values in (model.mean, model.std))
    to_input = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    return nn.Sequential(model.backbone, model.head), to_input


@functools.cache
def _input_shape() -> tuple[int, int, int]:
    columns = json.loads((bundle_folder() / "preprocess.json").read_text())["columns"]
    height, width, channels = columns["image"]
    return height, width, channels


def read_picture(data: bytes) -> NDArray[np.uint8]:
    """Decode with Pillow and resize by area, as CardioRay does: (H, W, 1) uint8."""
    height, width, channels = _input_shape()
    assert channels == 1
    grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    resized: NDArray[np.uint8] = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    return resized[..., None]
