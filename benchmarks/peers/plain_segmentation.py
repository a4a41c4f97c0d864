"""A segmentation trained the plain way: fp32, albumentations in the processes of a DataLoader.

Augmentations, loss, optimiser and batch are those of EchoEF-Net.
"""

from __future__ import annotations

from collections.abc import Iterator

import albumentations as alb
import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def augmentations(side: int) -> alb.Compose:
    """EchoEF-Net's changes of a picture and its label map."""

    def affine(scale: float, degrees: float, shear: float, shift: float) -> alb.Affine:
        return alb.Affine(
            scale=(1 - scale, 1 + scale),
            rotate=(-degrees, degrees),
            shear=(-shear, shear),
            translate_percent=(-shift, shift),
            p=1.0,
        )

    moved = alb.OneOf([affine(0.10, 12, 8, 0.03), affine(0.05, 6, 4, 0.02)], p=0.7)
    bent = alb.OneOf(
        [alb.GridDistortion(distort_limit=0.2, p=1.0), alb.ElasticTransform(20, 7, p=1.0)], p=0.3
    )
    toned = alb.OneOf(
        [
            alb.RandomBrightnessContrast(0.25, 0.20, p=1.0),
            alb.RandomGamma((80, 120), p=1.0),
            alb.CLAHE(p=1.0),
        ],
        p=0.6,
    )
    noisy = alb.OneOf(
        [alb.MultiplicativeNoise((0.85, 1.15), p=1.0), alb.GaussNoise((0.0, 0.06), p=1.0)], p=0.5
    )
    blurred = alb.OneOf(
        [alb.MotionBlur(3, p=1.0), alb.MedianBlur(3, p=1.0), alb.GaussianBlur(3, p=1.0)], p=0.3
    )
    smoother = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
    return alb.Compose(
        [
            moved,
            bent,
            alb.RandomResizedCrop((side, side), scale=(0.9, 1.0), p=0.35),
            toned,
            noisy,
            blurred,
            alb.Downscale((0.70, 0.95), smoother, p=0.15),
            alb.HorizontalFlip(p=0.5),
        ]
    )


class ChangedPictures(Dataset[tuple[Tensor, Tensor]]):
    """Pictures and label maps (N, S, S) in memory, changed anew whenever they are read."""

    def __init__(self, pictures: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self.pictures, self.labels = pictures, labels
        self.changes = augmentations(pictures.shape[1])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        changed = self.changes(image=self.pictures[index], mask=self.labels[index])
        picture = torch.from_numpy(changed["image"].astype(np.float32) / 255)[None]
        return picture, torch.from_numpy(changed["mask"].astype(np.int64))


class PlainTraining:
    """The loop: forward, cross-entropy and half the Dice loss, backward, AdamW."""

    def __init__(
        self, net: nn.Module, data: ChangedPictures, *, batch_size: int, workers: int
    ) -> None:
        self.net = net
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4)
        self.steps = len(data) // batch_size
        self.dice = smp.losses.DiceLoss("multiclass")
        self.loader = DataLoader(
            data,
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=True,
        )

    def epoch(self) -> Iterator[float]:
        """Train on every picture once; the loss of each step."""
        self.net.train()
        for pictures, labels in self.loader:
            self.optimizer.zero_grad()
            outputs = self.net(pictures)
            loss = F.cross_entropy(outputs, labels) + 0.5 * self.dice(outputs, labels)
            loss.backward()
            self.optimizer.step()
            yield loss.item()

    @torch.no_grad()
    def label_maps(self, pictures: NDArray[np.uint8], batch_size: int) -> NDArray[np.uint8]:
        """What the network draws, (N, S, S), in pictures (N, S, S, 1)."""
        self.net.eval()
        found = []
        for start in range(0, len(pictures), batch_size):
            some = torch.from_numpy(pictures[start : start + batch_size].astype(np.float32) / 255)
            found.append(self.net(some.permute(0, 3, 1, 2)).argmax(1))
        return torch.cat(found).numpy().astype(np.uint8)
