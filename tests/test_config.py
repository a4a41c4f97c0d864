"""Typed configuration: what is accepted, what is refused, and how an error reads."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from cardioray.config import config, digest, parse, replace, to_dict
from cardioray.targets import BinaryTarget, Target


@config
class Plain:
    size: int = 1


@config
class Schedule:
    kind: str = "cosine"
    warmup: float = Field(default=0.1, ge=0, le=1)


@config
class Training:
    epochs: int = Field(default=10, ge=1)
    backbones: tuple[str, ...] = ("densenet169",)
    schedule: Schedule = Schedule()
    weights: str | None = None
    target: Target | None = None
    stages: tuple[Schedule, ...] = ()

    def __post_init__(self) -> None:
        if self.schedule.kind == "plateau" and self.epochs < 3:
            raise ValueError("a plateau schedule needs at least 3 epochs.")


def test_values_come_from_a_mapping_and_overrides_in_order() -> None:
    values = {"epochs": 3, "schedule": {"warmup": 0.5}}
    made = parse(Training, values, ["schedule.warmup=0.2", "schedule.kind=plateau", "epochs=4"])
    assert made == Training(epochs=4, schedule=Schedule(kind="plateau", warmup=0.2))
    assert values == {"epochs": 3, "schedule": {"warmup": 0.5}}, "the input is left alone"


def test_override_values_are_read_as_yaml() -> None:
    made = parse(Training, {}, ["backbones=[vgg16, vgg19]", "weights=a=b.safetensors"])
    assert made.backbones == ("vgg16", "vgg19")
    assert made.weights == "a=b.safetensors"
    assert parse(Training, {}, ["weights=null"]).weights is None


@pytest.mark.parametrize(
    ("values", "overrides", "wanted"),
    [
        ({"epoch": 3}, [], ["epoch", "Did you mean 'epochs'?", "Known:", "schedule"]),
        ({"schedule": {"warm": 0.1}}, [], ["schedule.warm", "'warmup'", "Known: kind, warmup"]),
        ({}, ["schedule.warm=0.1"], ["schedule.warm", "'warmup'"]),
        ({"epochs": 0}, [], ["epochs", "greater than or equal to 1", "given: 0"]),
        ({"epochs": "many"}, [], ["epochs", "given: 'many'"]),
        ({"schedule": {"kind": "plateau"}, "epochs": 1}, [], ["at least 3 epochs"]),
        ({}, ["epochs"], ["'epochs'", "section.key=value"]),
        ({}, ["epochs.first=3"], ["epochs"]),
        ({"target": {"kind": "binray"}}, [], ["target", "binray"]),
        (
            {"target": {"kind": "binary", "name": "t", "positive": "p", "negative": "n", "cut": 1}},
            [],
            ["target.binary.cut", "Did you mean 'cutoff'?", "value_column"],
        ),
        ({"stages": [{"kind": "cosine"}, {"warm": 1}]}, [], ["stages.1.warm", "'warmup'"]),
    ],
)
def test_errors_name_the_key_and_fit_on_a_screen(
    values: dict[str, object], overrides: list[str], wanted: list[str]
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(Training, values, overrides)
    text = str(caught.value)
    for part in wanted:
        assert part in text
    assert len(text.splitlines()) <= 5


def test_override_below_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="'epochs' is a value, not a section"):
        parse(Training, {"epochs": 3}, ["epochs.first=3"])


def test_every_error_is_reported_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)epochs.*schedule\.warmup"):
        parse(Training, {"epochs": 0, "schedule": {"warmup": 2}})


def test_configs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Training().epochs = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="positional"):
        Plain(3)  # type: ignore[misc]


def test_defaults_are_validated_too() -> None:
    @config
    class Broken:
        share: float = Field(default=3.0, le=1)

    with pytest.raises(ValueError, match="less than or equal to 1"):
        Broken()


def test_replace_validates_and_leaves_the_original() -> None:
    original = Training()
    changed = replace(original, ["epochs=2"])
    assert (original.epochs, changed.epochs) == (10, 2)
    with pytest.raises(ValueError, match="epochs"):
        replace(original, ["epochs=0"])


@given(
    st.builds(
        Training,
        epochs=st.integers(1, 10**6),
        backbones=st.lists(st.text(max_size=8), max_size=3).map(tuple),
        schedule=st.builds(Schedule, kind=st.text(), warmup=st.floats(0, 1)),
        weights=st.none() | st.text(),
        target=st.none()
        | st.builds(BinaryTarget, name=st.text(), positive=st.text(), negative=st.text()),
    ).filter(lambda t: t.schedule.kind != "plateau")
)
def test_the_written_form_gives_the_same_config_and_digest(made: Training) -> None:
    read = parse(Training, yaml.safe_load(yaml.safe_dump(to_dict(made), allow_unicode=True)))
    assert read == made
    assert digest(read) == digest(made)


def test_digest_changes_with_any_setting_and_not_with_the_order() -> None:
    digests = {
        digest(Training()),
        digest(Training(epochs=11)),
        digest(Training(schedule=Schedule(warmup=0.2))),
        digest(Training(backbones=("densenet169", "vgg16"))),
        digest(Training(weights="")),
    }
    assert len(digests) == 5
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(to_dict(Training())) == digest(Training())
    assert len(digest(Training(), length=8)) == 8
