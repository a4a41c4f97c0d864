"""Backbones: what the registry says of the ten, and which pictures they take."""

from __future__ import annotations

import pytest
import timm
import tiny_training as tiny
import torch

from cardioray.models.backbones import BACKBONES, Backbone, backbone_info


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


def test_pictures_too_small_for_a_backbone_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="InceptionV3 needs pictures of at least 75 px"):
        tiny.tiny_run("model.backbone=inceptionv3")
