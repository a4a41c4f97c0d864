"""Named records: wildcards, comma lists and the answer to an unknown name."""

from __future__ import annotations

import pytest

from cardioray.registry import Registry, unknown_name


@pytest.fixture
def backbones() -> Registry[int]:
    registry: Registry[int] = Registry("backbone")
    for size, name in enumerate(("densenet121", "densenet169", "vgg16", "vgg19")):
        registry.add(name, size)
    return registry


def test_records_are_found_by_name_in_order_of_registration(backbones: Registry[int]) -> None:
    assert backbones.get("vgg16") == 2
    assert list(backbones) == ["densenet121", "densenet169", "vgg16", "vgg19"]
    assert len(backbones) == 4
    assert "vgg16" in backbones
    assert "resnet50" not in backbones


def test_the_decorator_registers_and_gives_the_record_back(backbones: Registry[int]) -> None:
    assert backbones.register("xception")(7) == 7
    assert backbones.get("xception") == 7


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["densenet121", "densenet169", "vgg16", "vgg19"]),
        ("vgg*", ["vgg16", "vgg19"]),
        ("resnet*", []),
    ],
)
def test_wildcards_find_names_in_their_order(
    backbones: Registry[int], pattern: str, found: list[str]
) -> None:
    assert backbones.names(pattern) == found


def test_an_unknown_name_gets_the_closest_and_all_known_ones(backbones: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"Unknown backbone 'vgg166'") as caught:
        backbones.get("vgg166")
    assert "Did you mean 'vgg16'?" in str(caught.value)
    assert "densenet121, densenet169, vgg16, vgg19" in str(caught.value)


def test_nothing_close_makes_no_guess() -> None:
    text = str(unknown_name("task", "zzz", ["ffr"]))
    assert text == "Unknown task 'zzz'. Known: ffr."
    assert str(unknown_name("task", "zzz", [])).endswith("Known: none.")


def test_a_taken_name_is_refused(backbones: Registry[int]) -> None:
    with pytest.raises(ValueError, match="'vgg16' is registered already"):
        backbones.add("vgg16", 9)
    assert backbones.get("vgg16") == 2
