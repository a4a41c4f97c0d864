"""Video networks: shapes, normalisation, and weights from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import video as published

from cardioray.data.clip_augment import ClipAugmentConfig, augment_clips
from cardioray.models.video import VIDEO_BACKBONES, VideoModel, VideoModelConfig
from cardioray.models.video_weights import load_video_weights, video_starting_weights
from cardioray.models.weights import convert_weights

PUBLISHED = [name for name in VIDEO_BACKBONES if VIDEO_BACKBONES.get(name).weights]


def model(backbone: str = "r2plus1d_10", channels: int = 1, *outputs: str) -> VideoModel:
    torch.manual_seed(0)
    settings = VideoModelConfig(backbone=backbone, pretrained="none")
    return VideoModel(settings, channels=channels, outputs=outputs or ("ef",)).eval()


def clips(batch: int = 2, frames: int = 8, size: int = 32, channels: int = 1) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (batch, frames, size, size, channels), dtype=torch.uint8)


def full(batch: int, frames: int) -> Tensor:
    return torch.full((batch,), frames, dtype=torch.uint8)


@pytest.mark.parametrize("backbone", VIDEO_BACKBONES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_gives_one_number_a_head(backbone: str, channels: int) -> None:
    with torch.device("meta"):
        net = VideoModel(
            VideoModelConfig(backbone=backbone, pretrained="none"),
            channels=channels,
            outputs=("ef", "edv"),
        ).eval()
        outputs, features = net.forward_with_features(
            clips(channels=channels).to("meta"), full(2, 8).to("meta")
        )
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "ef": (2,),
        "edv": (2,),
    }
    assert features.shape == (2, VIDEO_BACKBONES.get(backbone).feature_width)


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_features_are_those_of_the_published_network(backbone: str) -> None:
    net = model(backbone, 3)
    reference = getattr(published, backbone)(weights=None)
    reference.fc = nn.Identity()
    reference.load_state_dict(net.backbone.net.state_dict())
    x = torch.randn(2, 3, 8, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(net.backbone(x), reference.eval()(x), atol=1e-5)


def test_clips_are_normalised_and_frames_that_do_not_count_are_zero() -> None:
    net = model()
    net.initialise((40.0,), (20.0,), {"ef": 55.0})
    x, valid = clips(), torch.tensor([8, 5], dtype=torch.uint8)
    seen = net.normalise(x, valid)
    assert seen.shape == (2, 1, 8, 32, 32)
    assert torch.allclose(seen[0, 0], (x[0, ..., 0].float() - 40) / 20)
    assert not seen[1, :, 5:].any()
    # As EchoNet pads: whatever stands in a frame that does not count changes nothing.
    changed = x.clone()
    changed[1, 5:] = 7
    with torch.inference_mode():
        assert torch.equal(net(x, valid)["ef"], net(changed, valid)["ef"])
        assert net(x, valid)["ef"].sub(55).abs().max() < 5


def test_grey_input_answers_as_repeated_grey(tmp_path: Path) -> None:
    colour = model("r2plus1d_18", 3)
    save_file(colour.backbone.net.state_dict(), tmp_path / "w.safetensors")
    grey = model("r2plus1d_18", 1)
    load_video_weights(grey, str(tmp_path / "w.safetensors"))
    x = torch.randn(1, 1, 8, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(grey.backbone(x), colour.backbone(x.repeat(1, 3, 1, 1, 1)), atol=1e-4)


def echonet_file(
    path: Path, prefix: str, classes: int, backbone: str = "r2plus1d_18"
) -> dict[str, Tensor]:
    """A file as the published ones are: a training's state with a wrapped network in it."""
    torch.manual_seed(3)
    net = getattr(published, backbone)(weights=None)
    net.fc = nn.Linear(512, classes)
    state = net.state_dict()
    wrapped = {prefix + key: value for key, value in state.items()}
    torch.save({"epoch": 44, "state_dict": wrapped, "loss": 17.0, "best_loss": 16.5}, path)
    return state


@pytest.mark.parametrize("prefix", ["module.", "m.", ""])
def test_published_weights_load_with_their_head(tmp_path: Path, prefix: str) -> None:
    state = echonet_file(tmp_path / "echonet.pt", prefix, 1)
    convert_weights(str(tmp_path / "echonet.pt"), str(tmp_path / "echonet.safetensors"))
    net = model("r2plus1d_18", 3)
    settings = VideoModelConfig(weights=str(tmp_path / "echonet.safetensors"))
    path = video_starting_weights(settings, 3, str(tmp_path / "cache"))
    assert path is not None
    load_video_weights(net, path)
    loaded = net.backbone.net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if "fc" not in key)
    head = net.heads["ef"]
    assert torch.equal(head.weight, state["fc.weight"])
    assert torch.equal(head.bias, state["fc.bias"])


def test_a_classifier_of_other_questions_is_left_out(tmp_path: Path) -> None:
    echonet_file(tmp_path / "kinetics.pt", "", 400)
    convert_weights(str(tmp_path / "kinetics.pt"), str(tmp_path / "k.safetensors"))
    net = model("r2plus1d_18", 3)
    before = net.heads["ef"].weight.clone()
    load_video_weights(net, str(tmp_path / "k.safetensors"))
    assert torch.equal(net.heads["ef"].weight, before)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    echonet_file(tmp_path / "r3d.pt", "module.", 1, "r3d_18")
    convert_weights(str(tmp_path / "r3d.pt"), str(tmp_path / "r3d.safetensors"))
    settings = VideoModelConfig(weights=str(tmp_path / "r3d.safetensors"))
    with pytest.raises(ValueError, match=r"does not fit the network.*torchvision's names"):
        video_starting_weights(settings, 3, str(tmp_path))


def test_without_published_weights_it_is_said(tmp_path: Path) -> None:
    hub = VideoModelConfig(backbone="r2plus1d_10", pretrained="hub")
    with pytest.raises(ValueError, match="nobody publishes weights"):
        video_starting_weights(hub, 1, str(tmp_path))
    auto = VideoModelConfig(backbone="r2plus1d_10")
    assert video_starting_weights(auto, 1, str(tmp_path)) is None


def test_augmentation_moves_a_clip_as_a_whole_and_is_drawn_from_the_seed() -> None:
    x = clips(4, 6, 56)
    settings = ClipAugmentConfig(pad_px=12)
    once, again = (augment_clips(x, settings, (1, 2)) for _ in range(2))
    other = augment_clips(x, settings, (1, 3))
    assert once.shape == x.shape
    assert once.dtype == torch.uint8
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    moved = once[0].ne(0).any(-1)
    assert all(torch.equal(frame.any(0), moved[0].any(0)) for frame in moved)
    assert torch.equal(augment_clips(x, ClipAugmentConfig(pad_px=0), (1,)), x)
    noisy = augment_clips(x, ClipAugmentConfig(pad_px=0, noise=0.5), (5,))
    assert 0 < (noisy == 0).float().mean() < 0.6
