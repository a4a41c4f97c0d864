"""Backbones: what their records say of them, and which pictures they take."""

from __future__ import annotations

import pytest
import timm
import tiny_training as tiny
import torch

from cardioray.models.backbones import BACKBONES, Backbone, backbone_info, require_picture_size


@pytest.mark.parametrize("name", BACKBONES.names())
def test_a_record_says_what_timm_says_and_what_is_built(name: str) -> None:
    info = backbone_info(name)
    published = timm.get_pretrained_cfg(info.timm_id)
    assert published.has_weights
    assert info.input_size == published.input_size[-1]
    assert (info.mean, info.std) == (tuple(published.mean), tuple(published.std))
    with torch.device("meta"):
        net = Backbone(info).eval()
        for side in (info.min_input_size, info.min_input_size + 37, info.input_size):
            assert net(torch.zeros(2, 3, side, side)).shape == (2, info.feature_width)
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert info.parameters_millions == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", ["mobilenetv3large", "densenet121"])
def test_a_built_backbone_answers_with_finite_features(name: str) -> None:
    info = backbone_info(name)
    net = Backbone(info, channels=1).eval()
    with torch.inference_mode():
        features = net(torch.rand(1, 1, info.min_input_size, info.min_input_size))
    assert features.shape == (1, info.feature_width)
    assert features.isfinite().all()


@pytest.mark.parametrize("name", ["inceptionv3", "inceptionresnetv2"])
def test_no_side_below_the_smallest_gives_a_feature_map(name: str) -> None:
    info = backbone_info(name)
    side = info.min_input_size - 1
    with torch.device("meta"):
        net, picture = Backbone(info).eval(), torch.zeros(1, 3, side, side)
    with pytest.raises(RuntimeError):
        net(picture)


@pytest.mark.parametrize(
    ("name", "size", "taken"),
    [
        ("vit_tiny_patch16_384", 224, "384"),  # position embeddings
        ("halonet26t", 224, "256"),  # windows, of which timm's record does not speak
        ("dla34", 100, "64 or 96 or 128 or 224"),  # strides
    ],
)
def test_a_refused_size_does_fail_and_the_ones_named_do_not(
    name: str, size: int, taken: str
) -> None:
    info = backbone_info(name)
    with pytest.raises(
        ValueError, match=rf"pictures of {size} px .*It takes {taken} px:"
    ) as caught:
        require_picture_size(info, size, 1)
    assert len(str(caught.value)) < 400
    net = Backbone(info, channels=1).eval()
    with torch.inference_mode():
        for side in map(int, taken.split(" or ")):
            require_picture_size(info, side, 1)
            assert net(torch.rand(1, 1, side, side)).shape == (1, info.feature_width)
        with pytest.raises((AssertionError, RuntimeError)):
            net(torch.rand(1, 1, size, size))


def test_a_transformer_whose_positions_are_interpolated_takes_other_sizes() -> None:
    info = backbone_info("test_vit")
    require_picture_size(info, 64, 1)
    with torch.inference_mode():
        features = Backbone(info, channels=1).eval()(torch.rand(1, 1, 64, 64))
    assert features.shape == (1, info.feature_width)


@pytest.mark.filterwarnings("ignore:CSATv2 is designed for 3-channel")
def test_a_network_that_takes_no_grey_pictures_is_no_backbone_for_them() -> None:
    info = backbone_info("csatv2")
    require_picture_size(info, 512, 3)
    with pytest.raises(ValueError, match="csatv2 is no backbone for 1-channel pictures"):
        require_picture_size(info, 512, 1)


def test_a_run_with_pictures_its_network_does_not_take_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="does not take pictures of 32 px .*It takes 384 px"):
        tiny.tiny_run("model.backbone=vit_tiny_patch16_384")
    tiny.tiny_run("model.backbone=vit_tiny_patch16_384", "preprocess.image_size=384")


def test_pictures_too_small_for_a_backbone_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="InceptionV3 needs pictures of at least 75 px"):
        tiny.tiny_run("model.backbone=inceptionv3")
    with pytest.raises(ValueError, match="InceptionV3 needs pictures of at least 75 px"):
        require_picture_size(backbone_info("inceptionv3"), 74, 1)


def test_a_tag_nobody_published_is_answered_with_the_known_ones() -> None:
    assert backbone_info("resnet18.a1_in1k").timm_id == "resnet18.a1_in1k"
    with pytest.raises(ValueError, match=r"Unknown backbone 'resnet18\.a9'.*resnet18\.a1_in1k"):
        backbone_info("resnet18.a9")
