"""Segmentation networks: shapes of every registered one, names, weights from files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cardioray.models.segmentation import (
    MASKS,
    SEGMENTERS,
    SegmentModel,
    SegmentModelConfig,
    load_segment_weights,
    segment_starting_weights,
    segmenter_info,
)

SMALL = SegmentModelConfig(backbone="unet-resnet18", pretrained="none")


def model(settings: SegmentModelConfig = SMALL, classes: int = 4) -> SegmentModel:
    torch.manual_seed(0)
    return SegmentModel(settings, channels=1, classes=classes).eval()


def pictures(count: int = 2, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 255, (count, side, side, 1), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", list(SEGMENTERS))
def test_every_network_gives_a_score_for_each_class_and_pixel(name: str) -> None:
    network = model(SegmentModelConfig(backbone=name, pretrained="none"))
    with torch.inference_mode():
        outputs, features = network.forward_with_features(pictures())
        assert torch.equal(network(pictures())[MASKS], outputs[MASKS])
    assert outputs[MASKS].shape == (2, 4, 64, 64)
    assert features.ndim == 2
    assert len(features) == 2
    first, every = network.first_blocks(), list(network.net.encoder.parameters())
    assert 0 < len(first) < len(every)


def test_normalisation_is_that_of_the_training_pictures() -> None:
    network = model()
    network.initialise([100.0], [50.0])
    shown = network.normalise(torch.full((1, 32, 32, 1), 150, dtype=torch.uint8))
    assert shown.shape == (1, 1, 32, 32)
    assert (shown == 1).all()
    assert {"mean", "std"} <= set(network.state_dict())


@pytest.mark.parametrize("name", ["FPN-MobileNet_v2", "unet-tu-resnet10t"])
def test_any_architecture_and_encoder_make_a_network(name: str) -> None:
    network = model(SegmentModelConfig(backbone=name, pretrained="none"))
    assert segmenter_info(name).name == name.lower()
    with torch.inference_mode():
        assert network(pictures())[MASKS].shape == (2, 4, 64, 64)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet34", "architecture-encoder, as in unet-resnet34"),
        ("unet-resnet99", "resnet34.*Any model of timm works with tu- before its name"),
        ("vnet-resnet18", "unetplusplus"),
        ("unet-tu-nothing", "timm knows no model 'nothing'"),
    ],
)
def test_unknown_names_are_answered_with_known_ones(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){reason}"):
        SegmentModelConfig(backbone=name)


def test_weights_of_a_whole_network_and_of_an_encoder(tmp_path: Path) -> None:
    trained = model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    whole, encoder = tmp_path / "whole.safetensors", tmp_path / "encoder.safetensors"
    save_file(trained.state_dict(), whole)
    save_file({f"module.{k}": v for k, v in trained.net.encoder.state_dict().items()}, encoder)
    for file in (whole, encoder):
        settings = SegmentModelConfig(backbone="unet-resnet18", weights=str(file))
        assert segment_starting_weights(settings, 1, str(tmp_path)) == str(file)
        fresh = model()
        load_segment_weights(fresh, str(file))
        own, expected = fresh.net.encoder.state_dict(), trained.net.encoder.state_dict()
        assert all(torch.equal(own[key], expected[key]) for key in expected)
        heads = [m.net.segmentation_head[0].weight for m in (fresh, trained)]
        assert torch.equal(*heads) == (file == whole)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file(
        model(SegmentModelConfig(backbone="unet-resnet34", pretrained="none")).state_dict(), file
    )
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        segment_starting_weights(
            SegmentModelConfig(backbone="unet-resnet18", weights=str(file)), 1, str(tmp_path)
        )


def test_without_a_hub_it_starts_from_scratch_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    settings = SegmentModelConfig(backbone="unet-resnet18")
    with caplog.at_level(logging.WARNING):
        assert segment_starting_weights(settings, 1, str(tmp_path)) is None
    assert "starts from scratch" in caplog.text
    with pytest.raises(ValueError, match="pretrained=none to start from scratch"):
        segment_starting_weights(
            SegmentModelConfig(backbone="unet-resnet18", pretrained="hub"), 1, str(tmp_path)
        )
