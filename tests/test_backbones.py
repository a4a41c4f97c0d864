"""Backbones: what the registry says of the ten, and weights in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import tiny_training as tiny
import torch
import torchvision
from safetensors.torch import save_file

from cardioray import storage
from cardioray.models import weights
from cardioray.models.backbones import BACKBONES, Backbone, backbone_info
from cardioray.models.classifier import ImageModelConfig
from cardioray.models.weights import convert_weights, load_backbone, read_weights


@pytest.mark.parametrize("name", BACKBONES.names())
def test_a_record_says_what_timm_says_and_what_is_built(name: str) -> None:
    info = backbone_info(name)
    published = timm.get_pretrained_cfg(info.timm_id)
    assert published.has_weights
    assert info.input_size == published.input_size[-1]
    assert (info.mean, info.std) == (tuple(published.mean), tuple(published.std))
    with torch.device("meta"):
        net = Backbone(info).eval()
        features = net(torch.zeros(2, 3, info.min_input_size, info.min_input_size))
    assert features.shape == (2, info.feature_width)
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert info.parameters_millions == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", ["inceptionv3", "inceptionresnetv2"])
def test_no_side_below_the_smallest_gives_a_feature_map(name: str) -> None:
    info = backbone_info(name)
    side = info.min_input_size - 1
    with torch.device("meta"):
        net, picture = Backbone(info).eval(), torch.zeros(1, 3, side, side)
    with pytest.raises(RuntimeError):
        net(picture)


def test_a_network_of_one_size_is_refused_other_pictures_at_once() -> None:
    with pytest.raises(ValueError, match="test_vit takes pictures of 160 px only"):
        tiny.tiny_run("model.backbone=test_vit")
    tiny.tiny_run("model.backbone=test_vit", "preprocess.image_size=160")


def test_a_network_nobody_has_published_weights_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ImageModelConfig(backbone="coatnet_0_224")
    assert weights.starting_weights(settings, 1, str(tmp_path)) is None
    assert "timm knows of none" in caplog.text
    with pytest.raises(ValueError, match="timm knows of none"):
        weights.starting_weights(
            ImageModelConfig(backbone="coatnet_0_224", pretrained="hub"), 1, str(tmp_path)
        )


@pytest.mark.parametrize("name", ["densenet121", "vgg16"])
def test_torchvision_weights_are_taken_where_its_names_are_timms(name: str) -> None:
    torch.manual_seed(0)
    published = getattr(torchvision.models, name)().state_dict()
    net = Backbone(backbone_info(name)).net
    load_backbone(net, published, "file.safetensors")
    first = next(iter(net.state_dict()))
    assert torch.equal(net.state_dict()[first], published[first])


def test_older_files_have_no_counts_of_batches_and_trainers_more_than_the_network() -> None:
    net = tiny.tiny_run().task.build_model().backbone.net
    state = {
        f"module.encoder.{key}": value
        for key, value in net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    state |= {"module.head.weight": torch.zeros(3), "criterion.weight": torch.ones(2)}
    load_backbone(net, state, "file.safetensors")


def test_weights_are_converted_in_a_bucket(s3: str, tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "published.pt")
    storage.write_bytes(f"{s3}/published.pt", (tmp_path / "published.pt").read_bytes())
    assert convert_weights(f"{s3}/published.pt", f"{s3}/weights.safetensors") == ["a"]
    assert torch.equal(read_weights(f"{s3}/weights.safetensors")["a"], torch.arange(3.0))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    net = tiny.tiny_run().task.build_model().backbone.net
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file(net.state_dict(), whole)
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut.safetensors is damaged"):
        read_weights(str(cut))
    with pytest.raises(ValueError, match=r"none.safetensors does not exist"):
        read_weights(str(tmp_path / "none.safetensors"))
    torch.save(net.state_dict(), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for name, content in {"cut": data[: len(data) // 2], "empty": b"", "text": b"hello"}.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.pt (cannot be read|is damaged)"):
            convert_weights(str(tmp_path / f"{name}.pt"), str(tmp_path / "out.safetensors"))
    torch.save(net, tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"holds Python objects.*state_dict\(\) alone"):
        convert_weights(str(tmp_path / "module.pt"), str(tmp_path / "out.safetensors"))


def test_a_file_that_does_not_fit_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    run = tiny.tiny_run(f"model.weights={tmp_path / 'other.safetensors'}")
    with pytest.raises(ValueError, match=r"other.safetensors does not fit the network"):
        run.task.starting_weights(str(tmp_path))


@pytest.mark.parametrize("prefix", ["module.", "m.", "module.model."])
def test_published_weights_are_converted_and_loaded(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = tiny.tiny_run().task.build_model().backbone.net
    state = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "published.pt")
    keys = convert_weights(str(tmp_path / "published.pt"), str(tmp_path / "weights.safetensors"))
    assert keys == sorted(source.state_dict())

    run = tiny.tiny_run(f"model.weights={tmp_path / 'weights.safetensors'}")
    path = run.task.starting_weights(str(tmp_path))
    assert path is not None
    torch.manual_seed(2)
    model = run.task.build_model()
    run.task.load_starting_weights(model, path)
    for key, value in model.backbone.net.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])


def test_a_first_layer_for_rgb_is_summed_for_grey_pictures() -> None:
    grey = tiny.tiny_run().task.build_model().backbone.net
    first = next(key for key, value in grey.state_dict().items() if value.ndim == 4)
    published = dict(grey.state_dict())
    shape = list(published[first].shape)
    published[first] = torch.randn(shape[0], 3, *shape[2:])
    load_backbone(grey, published, "file.safetensors")
    loaded = grey.state_dict()[first]
    torch.testing.assert_close(loaded, published[first].sum(1, keepdim=True))


@pytest.mark.parametrize("offline", [True, False])
def test_without_published_weights_training_starts_from_scratch_and_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    offline: bool,
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError("403: the proxy does not let this through")

    monkeypatch.setattr(weights, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("timm.create_model", refused)
    monkeypatch.setattr(weights.httpx, "head", lambda *_, **__: None)
    settings = ImageModelConfig(backbone="vgg16")
    assert weights.starting_weights(settings, 1, str(tmp_path)) is None
    assert "starts from scratch" in caplog.text
    wanted = ImageModelConfig(backbone="vgg16", pretrained="hub")
    with pytest.raises(ValueError, match=r"403.*model\.weights=FILE"):
        weights.starting_weights(wanted, 1, str(tmp_path))


def test_pictures_too_small_for_a_backbone_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="InceptionV3 needs pictures of at least 75 px"):
        tiny.tiny_run("model.backbone=inceptionv3")


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    net = tiny.tiny_run().task.build_model().backbone.net
    state = dict(net.state_dict())
    first, second = list(state)[:2]
    state[first] = torch.zeros(5, 5)
    del state[second]
    with pytest.raises(ValueError, match=rf"1 of \d+ tensors missing.*missing {second}; {first}: "):
        load_backbone(net, state, "file.safetensors")
    with pytest.raises(ValueError, match="cardioray models convert"):
        read_weights("published.pt")
    torch.save([1, 2], tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        convert_weights(str(tmp_path / "nothing.pt"), str(tmp_path / "out.safetensors"))
