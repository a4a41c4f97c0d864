"""Windows and mirror images: against a plain implementation, and in every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cardioray.data.segment_augment import draw_windows
from cardioray.models.runtime import OpenVinoRuntime, TorchRuntime, export_openvino
from cardioray.models.segment_windows import Passes
from cardioray.models.segmentation import MASKS, SegmentModel, SegmentModelConfig
from cardioray.tasks import make_task
from cardioray.tasks.base import LabelStatistics

CPU = torch.device("cpu")


def model(**settings: Any) -> SegmentModel:
    torch.manual_seed(0)
    config = SegmentModelConfig(backbone="unet-tu-resnet10t", pretrained="none", **settings)
    return SegmentModel(config, channels=1, classes=4).eval()


def pictures(count: int, side: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 255, (count, side, side, 1), generator=generator, dtype=torch.uint8)


def probabilities(network: SegmentModel, shown: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(shown)[MASKS].softmax(dim=1)


@given(
    side=st.integers(32, 400), window=st.integers(8, 400), overlap=st.sampled_from([0, 0.3, 0.5])
)
def test_windows_cover_the_picture_and_overlap_as_much_as_asked(
    side: int, window: int, overlap: float
) -> None:
    found = Passes.over(side, window, overlap, mirrored=False)
    assert found.starts[0] == 0
    assert found.starts[-1] + found.window == side
    steps = np.diff(found.starts)
    assert (steps > 0).all()
    assert (steps <= found.window * (1 - overlap) + 1).all()
    fewer = len(found.starts) - 2  # steps, if there were one window less
    if fewer > 0:
        assert (side - found.window) / fewer > found.window * (1 - overlap)


def test_the_mean_is_that_of_a_plain_loop() -> None:
    passes = Passes.over(20, 8, 0.4, mirrored=True)
    logits = torch.randn(passes.count * 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = passes.joined(logits).exp().numpy()
    places = np.arange(8) - 3.5
    weights = np.exp(-(places**2 + places[:, None] ** 2) / 2 / (8 / 8) ** 2)
    total, norm = np.zeros((2, 3, 20, 20)), np.zeros((20, 20))
    each = iter(logits.softmax(dim=1).numpy().reshape(passes.count, 2, 3, 8, 8))
    for mirrored in (False, True):
        for top in passes.starts:
            for left in passes.starts:
                own = next(each)
                part = np.s_[..., top : top + 8, left : left + 8]
                total[part] += weights * (own[..., ::-1] if mirrored else own)
                norm[part] += weights
    assert found == pytest.approx(total / norm, abs=1e-6)


def test_windows_of_a_picture_come_pass_by_pass() -> None:
    passes = Passes.over(96, 64, 0.5, mirrored=True)
    shown = pictures(3)
    windows = passes.split(shown)
    assert windows.shape == (8 * 3, 64, 64, 1)
    assert passes.starts == (0, 32)
    assert torch.equal(windows[3 * 1 + 2], shown[2, :64, 32:])
    assert torch.equal(windows[3 * 5 + 2], shown[2, :64, 32:].flip(1))


def test_whoever_looks_at_single_pixels_sees_no_windows() -> None:
    whole = pictures(2).float().permute(0, 3, 1, 2) / 64
    logits = torch.cat([whole, -whole, whole**2 / 4], dim=1)
    passes = Passes.over(96, 32, 0.5, mirrored=True)
    windows = passes.split(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    # The mirror image of a window has the mirror image of its scores.
    joined = passes.joined(windows).softmax(dim=1)
    assert torch.allclose(joined, logits.softmax(dim=1), atol=1e-6)


def test_windows_leave_no_seam() -> None:
    passes = Passes.over(128, 64, 0.5, mirrored=False)
    levels = torch.arange(9.0)[:, None, None, None].expand(9, 1, 64, 64) / 4
    found = passes.joined(torch.cat([levels, -levels], dim=1)).exp()[0, 0]
    abrupt = torch.cat([levels, -levels], dim=1).softmax(dim=1)[:, 0, 0, 0]
    largest = max(found.diff(dim=dim).abs().max() for dim in (0, 1))
    assert largest < 0.1 * (abrupt.max() - abrupt.min())


def test_with_mirror_images_the_answer_to_a_mirrored_picture_is_mirrored() -> None:
    shown = pictures(2)
    for window in (0, 64):
        both = model(flips=True, window=window)
        there, back = (probabilities(both, each) for each in (shown, shown.flip(2)))
        assert torch.allclose(there, back.flip(3), atol=1e-5)
    plain = model()
    there, back = (probabilities(plain, each) for each in (shown, shown.flip(2)))
    assert not torch.allclose(there, back.flip(3), atol=1e-3)
    assert torch.allclose(probabilities(model(flips=True), shown), (there + back.flip(3)) / 2)


def test_a_picture_is_answered_alike_alone_and_among_others() -> None:
    network = model(window=64, flips=True)
    shown = pictures(3)
    together = probabilities(network, shown)
    assert together.shape == (3, 4, 96, 96)
    assert torch.allclose(together.sum(dim=1), torch.ones(3, 96, 96), atol=1e-5)
    alone = torch.cat([probabilities(network, one[None]) for one in shown])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_network_in_training_takes_what_it_is_given() -> None:
    network = model(window=64, flips=True).train()
    assert network(pictures(2, 64))[MASKS].shape == (2, 4, 64, 64)
    plain = model().train()
    shown = pictures(2, 64)
    assert torch.equal(network(shown)[MASKS], plain(shown)[MASKS])


@pytest.mark.parametrize(
    "settings", [{"flips": True}, {"window": 64}, {"window": 64, "flips": True}], ids=str
)
def test_openvino_computes_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    network = model(**settings)
    example = pictures(2).numpy()
    export_openvino(network, (MASKS,), (example,), tmp_path)
    fast, plain = (
        OpenVinoRuntime(tmp_path, bf16=False),
        TorchRuntime(network, device=CPU, bf16=False),
    )
    for count in (1, 3):
        shown = (pictures(count).numpy(),)
        found, expected = fast.run(shown), plain.run(shown)
        assert set(found) == set(expected)
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, abs=1e-4), name


def test_windows_of_training_show_the_same_part_of_both() -> None:
    masks = torch.arange(96 * 96).reshape(1, 96, 96).expand(4, 96, 96)
    shown = masks[..., None].float()
    cut, labels = draw_windows(shown, masks, 64, (3, 1))
    assert cut.shape == (4, 64, 64, 1)
    assert torch.equal(cut[..., 0].long(), labels)
    corners = labels[:, 0, 0]
    assert len(corners.unique()) > 1
    assert (labels[:, -1, -1] - corners == 63 * 96 + 63).all()
    again, _ = draw_windows(shown, masks, 64, (3, 1))
    other, _ = draw_windows(shown, masks, 64, (3, 2))
    assert torch.equal(cut, again)
    assert not torch.equal(cut, other)


def test_a_task_learns_from_windows_and_is_measured_on_pictures() -> None:
    task = make_task(
        "lv-seg",
        {
            "preprocess": {"image_size": 96},
            "model": {"backbone": "unet-tu-resnet10t", "window": 64, "flips": True},
        },
    )
    batch = {"image": pictures(2), "mask": torch.ones(2, 96, 96, dtype=torch.uint8)}
    changed = task.augment(batch, (0, 1))
    assert changed["image"].shape == (2, 64, 64, 1)
    assert changed["mask"].shape == (2, 64, 64)
    statistics = LabelStatistics(class_weights={}, means={}, deviations={})
    network = task.build_model()
    loss = task.loss(network.train()(changed["image"]), changed, statistics)
    loss.backward()
    assert loss.item() > 0
    measures = task.measures(network.eval()(batch["image"]), batch, statistics)
    assert measures["dice_cavity"].shape == (2,)
    assert task.max_batch == 16 // 8
    assert make_task("lv-seg").max_batch == 16


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"window": 256}, r"model.window \(256\) is smaller than preprocess.image_size \(256\)"),
        ({"window": 100}, "multiple of 32"),
        ({"overlap": 1.0}, "less than or equal to 0.9"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_task("lv-seg", {"model": settings})
