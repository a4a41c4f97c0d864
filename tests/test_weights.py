"""Weights in and out: files, names of other libraries and wrappers, and timm's hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import tiny_training as tiny
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cardioray import storage
from cardioray.models import weights
from cardioray.models.backbones import Backbone, backbone_info
from cardioray.models.classifier import ImageModelConfig
from cardioray.models.fitting import fit_to_network
from cardioray.models.weights import convert_weights, load_backbone, read_weights

State = dict[str, Tensor]


def tiny_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = tiny.tiny_run().task.build_model().backbone.net
    assert isinstance(net, nn.Module)
    return net


def require_equal(loaded: State, wanted: State) -> None:
    for key, value in loaded.items():
        assert torch.equal(value, wanted[key]), key


def test_a_network_nobody_has_published_weights_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ImageModelConfig(backbone="coatnet_0_224")
    assert weights.starting_weights(settings, 1, str(tmp_path)) is None
    assert caplog.messages == [
        "timm knows of no published weights of coatnet_0_224: training starts from scratch, the "
        "frozen stage is left out."
    ]
    wanted = ImageModelConfig(backbone="coatnet_0_224", pretrained="hub")
    with pytest.raises(ValueError, match=r"no published weights of coatnet_0_224; pass model\.w"):
        weights.starting_weights(wanted, 1, str(tmp_path))


@pytest.mark.parametrize("name", ["densenet121", "vgg16", "vgg19", "inceptionv3"])
def test_torchvision_weights_are_taken_where_its_names_are_timms(name: str) -> None:
    torch.manual_seed(0)
    if name == "inceptionv3":
        published = torchvision.models.inception_v3(weights=None, init_weights=False).state_dict()
    else:
        published = getattr(torchvision.models, name)(weights=None).state_dict()
    net = Backbone(backbone_info(name)).net
    load_backbone(net, published, "file.safetensors")
    require_equal(net.state_dict(), published)


def test_densenets_as_torchvision_publishes_them_have_older_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = torchvision.models.densenet121(weights=None).state_dict()
    older = {
        key.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2."): value
        for key, value in published.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    torch.save(older, tmp_path / "densenet121.pth")
    target = str(tmp_path / "densenet121.safetensors")
    convert_weights(str(tmp_path / "densenet121.pth"), target)
    net = Backbone(backbone_info("densenet121")).net
    load_backbone(net, read_weights(target), target)
    require_equal(net.state_dict(), published)


def test_torchvision_weights_of_other_names_are_refused_with_what_is_in_the_file() -> None:
    with torch.device("meta"):
        published = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
        net = Backbone(backbone_info("mobilenetv3large")).net
    with pytest.raises(
        ValueError, match=r"missing conv_stem\.weight.*begins with features\.0\.0\.weight"
    ) as caught:
        fit_to_network(net, published, "file.safetensors")
    assert "timm's names" in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("deeper", "name", "unknown"),
    [
        ("resnetv2_101", "resnet50v2", r"stages\.2\.blocks\.6\."),
        ("convnext_small", "convnext_tiny", r"stages\.2\.blocks\.9\."),
        ("seresnet50", "resnet50", r"layer1\.0\.se\."),
    ],
)
def test_a_network_that_has_all_tensors_and_more_is_another_one(
    deeper: str, name: str, unknown: str
) -> None:
    with torch.device("meta"):
        state = timm.create_model(deeper).state_dict()
        net = Backbone(backbone_info(name)).net
    with pytest.raises(ValueError, match=rf"unknown {unknown}.*Set model\.backbone") as caught:
        fit_to_network(net, state, "file.safetensors")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "name",
    ["convnext_atto", "caformer_s18", "mobilenetv3large", "vgg16", "test_vit", "iformer_t"],
)
def test_the_classifier_of_a_file_is_left_out(name: str) -> None:
    info = backbone_info(name)
    with torch.device("meta"):
        state = timm.create_model(info.timm_id).state_dict()
        net = Backbone(info).net
    assert len(state) > len(net.state_dict())
    assert fit_to_network(net, state, "file").keys() == net.state_dict().keys()


def test_older_files_have_no_counts_of_batches_and_trainers_more_than_the_network() -> None:
    source, net = tiny_net(1), tiny_net(2)
    state = {
        f"module.encoder.{key}": value
        for key, value in source.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    state |= {"module.head.weight": torch.zeros(3), "criterion.weight": torch.ones(2)}
    load_backbone(net, state, "file.safetensors")
    require_equal(net.state_dict(), source.state_dict())


def test_counts_of_batches_that_the_network_has_not_are_left_out() -> None:
    source, net = tiny_net(1), tiny_net(2)
    block = next(iter(source.state_dict())).rpartition(".")[0]
    state = source.state_dict() | {f"{block}.num_batches_tracked": torch.tensor(7)}
    assert state.keys() > net.state_dict().keys()
    load_backbone(net, state, "file.safetensors")
    require_equal(net.state_dict(), source.state_dict())


def test_what_wraps_a_part_of_a_network_leaves_its_name_in_some_keys_only() -> None:
    source, net = tiny_net(1), tiny_net(2)
    wrapped: State = {}
    for number, (key, value) in enumerate(source.state_dict().items()):
        first, _, rest = key.partition(".")
        inside = ("module", "_orig_mod", "_fsdp_wrapped_module._checkpoint_wrapped_module")
        wrapped[f"{first}.{inside[number % 3]}.{rest}" if number % 4 else key] = value
    load_backbone(net, wrapped, "file.safetensors")
    require_equal(net.state_dict(), source.state_dict())


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, torch.compile])
def test_what_pytorch_itself_wraps_is_taken(wrap: Callable[[nn.Module], nn.Module]) -> None:
    source, net = tiny_net(1), tiny_net(2)
    load_backbone(net, wrap(source).state_dict(), "file.safetensors")
    require_equal(net.state_dict(), source.state_dict())


def test_a_file_with_the_network_twice_is_not_guessed_about() -> None:
    state = tiny_net().state_dict()
    pair = {
        f"{part}.{key}": value
        for part in ("encoder_q", "encoder_k")
        for key, value in state.items()
    }
    with pytest.raises(ValueError, match=r"2 times, under encoder_k\., encoder_q\.; save the one"):
        load_backbone(tiny_net(), pair, "file.safetensors")
    with pytest.raises(ValueError, match=r"2 times, under no prefix, ema\.;"):
        load_backbone(tiny_net(), state | {f"ema.{k}": v for k, v in state.items()}, "file")
    first = next(iter(state))
    with pytest.raises(ValueError, match=rf"file.safetensors holds {first} twice"):
        load_backbone(tiny_net(), state | {f"module.{first}": state[first]}, "file.safetensors")


def test_weights_are_converted_in_a_bucket(s3: str, tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "published.pt")
    storage.write_bytes(f"{s3}/published.pt", (tmp_path / "published.pt").read_bytes())
    assert convert_weights(f"{s3}/published.pt", f"{s3}/weights.safetensors") == ["a"]
    assert torch.equal(read_weights(f"{s3}/weights.safetensors")["a"], torch.arange(3.0))


def test_damaged_safetensors_are_named(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file(tiny_net().state_dict(), whole)
    data = whole.read_bytes()
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut.safetensors is damaged") as caught:
            read_weights(str(cut))
        assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match=r"none.safetensors does not exist"):
        read_weights(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("archive", [True, False])
def test_damaged_published_files_are_named(tmp_path: Path, archive: bool) -> None:
    file, target = tmp_path / "cut.pt", str(tmp_path / "out.safetensors")
    state = {"state_dict": {f"layer{n}.weight": torch.rand(7, 5) for n in range(6)}, "epoch": 3}
    torch.save(state, file, _use_new_zipfile_serialization=archive)
    data = file.read_bytes()
    cuts = [data[: len(data) * share // 40] for share in range(40)]
    for content in [*cuts, b"hello", bytes(1000)]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"cut.pt is damaged") as caught:
            convert_weights(str(file), target)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)
    assert not Path(target).exists()


def test_a_flipped_bit_in_a_published_file_is_found(tmp_path: Path) -> None:
    values, file = torch.rand(1000), tmp_path / "flipped.pt"
    torch.save({"weight": values}, file)
    data = bytearray(file.read_bytes())
    data[data.find(values.numpy().tobytes()) + 100] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"flipped.pt is damaged .*checksum of .* does not fit"):
        convert_weights(str(file), str(tmp_path / "out.safetensors"))


def test_python_objects_in_a_published_file_are_named(tmp_path: Path) -> None:
    file, target = str(tmp_path / "module.pt"), str(tmp_path / "out.safetensors")
    torch.save(nn.Linear(2, 2), file)
    with pytest.raises(
        ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\) alone"
    ):
        convert_weights(file, target)
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "best": np.float64(0.9)}, file)
    with pytest.raises(ValueError, match=r"holds Python objects \(numpy.*state_dict\(\) alone"):
        convert_weights(file, target)


def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path: Path) -> None:
    file, target = str(tmp_path / "other.pt"), str(tmp_path / "out.safetensors")
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="holds no state dict .* but a list"):
        convert_weights(file, target)
    torch.save({"epoch": 3, "student": {"weight": torch.zeros(2)}}, file)
    with pytest.raises(ValueError, match="holds no state dict .* but only epoch, student; save"):
        convert_weights(file, target)
    with pytest.raises(ValueError, match=r"none.pt does not exist"):
        convert_weights(str(tmp_path / "none.pt"), target)
    with pytest.raises(ValueError, match=r"out.pt must end in .safetensors"):
        convert_weights(file, str(tmp_path / "out.pt"))


def test_transposed_and_shared_tensors_are_converted(tmp_path: Path) -> None:
    file, target = str(tmp_path / "published.pt"), str(tmp_path / "out.safetensors")
    shared = torch.rand(3, 4)
    torch.save({"a": shared, "b": shared, "c": shared.T}, file)
    convert_weights(file, target)
    written = read_weights(target)
    require_equal(written, {"a": shared, "b": shared, "c": shared.T})


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

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("timm.create_model", refused)
    monkeypatch.setattr("httpx.head", lambda *_, **__: None)
    settings = ImageModelConfig(backbone="vgg16")
    assert weights.starting_weights(settings, 1, str(tmp_path)) is None
    assert "starts from scratch" in caplog.text
    wanted = ImageModelConfig(backbone="vgg16", pretrained="hub")
    with pytest.raises(ValueError, match=r"403.*model\.weights=FILE"):
        weights.starting_weights(wanted, 1, str(tmp_path))


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    net = tiny_net()
    state = dict(net.state_dict())
    first, second = list(state)[:2]
    state[first] = torch.zeros(5, 5)
    del state[second]
    with pytest.raises(
        ValueError, match=rf"1 are missing and 1 have .*\(missing {second}; {first}: \(5, 5\) for "
    ):
        load_backbone(net, state, "file.safetensors")
    with pytest.raises(ValueError, match="cardioray models convert"):
        read_weights("published.pt")


@pytest.fixture
def hub_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a fetch of `test_resnet` leaves in the cache; there is no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    folder = cache / f"models--{repository.replace('/', '--')}"
    for part in ("blobs", "refs", "snapshots/1"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("1")
    torch.manual_seed(5)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "blobs" / "weights")
    (folder / "snapshots" / "1" / "model.safetensors").symlink_to(folder / "blobs" / "weights")
    return folder / "blobs" / "weights"


def test_published_weights_are_kept_for_workers_without_internet(
    hub_copy: Path, tmp_path: Path
) -> None:
    settings = ImageModelConfig(backbone="test_resnet", pretrained="hub")
    path = weights.starting_weights(settings, 1, str(tmp_path / "cache"))
    assert path is not None
    net = tiny_net()
    load_backbone(net, read_weights(path), path)
    published = load_file(hub_copy)
    first = next(key for key, value in net.state_dict().items() if value.ndim == 4)
    published[first] = published[first].sum(1, keepdim=True)
    require_equal(net.state_dict(), published)


def test_a_damaged_copy_of_published_weights_is_named_and_not_passed_over(
    hub_copy: Path, tmp_path: Path
) -> None:
    hub_copy.write_bytes(hub_copy.read_bytes()[:-100])
    settings = ImageModelConfig(backbone="test_resnet")
    with pytest.raises(ValueError, match=rf"{hub_copy}, the local copy .* is damaged .*delete it"):
        weights.starting_weights(settings, 1, str(tmp_path / "cache"))
