"""Typed configuration: nested frozen dataclasses, with YAML as their written form.

Every setting of CardioRay is a field of a class decorated with `config`. Values are validated
when an object is made, unknown keys are refused, and an error fits on a screen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast, dataclass_transform, get_args

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from cardioray.registry import unknown_name

T = TypeVar("T")


class Failed(RuntimeError):  # noqa: N818 (says what happened)
    """Work that did not succeed though what was asked for is right; the message says what to do.

    The command line shows its message alone, as it does for ValueError and OSError.
    """


def read_yaml(text: str | bytes, source: str) -> Any:
    """What a YAML text says.

    Args:
        text: the YAML, or the bytes of a file of it.
        source: what the text is, for the error.

    Raises:
        ValueError: when it is no YAML; says where.
    """
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{source} is no YAML: line {line}: {error.problem}.") from None
    except yaml.YAMLError as error:  # characters that no text has
        raise ValueError(f"{source} is no YAML: {error}") from None


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,)
)
def config(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only, validated dataclass that refuses unknown keys."""
    settings = ConfigDict(extra="forbid", validate_default=True)
    decorate = pydantic_dataclass(frozen=True, kw_only=True, config=settings)
    return cast(type[T], decorate(cls))


def parse(cls: type[T], values: Mapping[str, Any], overrides: Iterable[str] = ()) -> T:
    """Build a config from a mapping and `section.key=value` overrides.

    Args:
        cls: a class decorated with `config`.
        values: nested mapping, as YAML gives it.
        overrides: texts such as "train.epochs=3"; the value is read as YAML.

    Raises:
        ValueError: for an unknown key or a value of the wrong kind; names the key.
    """
    merged = json.loads(json.dumps(dict(values)))
    for text in overrides:
        _apply_override(merged, text)
    try:
        return TypeAdapter(cls).validate_python(merged)
    except ValidationError as error:
        raise ValueError(_explain(cls, error)) from None


def replace(value: T, overrides: Iterable[str] = ()) -> T:
    """A copy of a config with `section.key=value` overrides applied and validated."""
    return parse(type(value), to_dict(value), overrides)


def to_dict(value: Any) -> dict[str, Any]:
    """A config as plain dicts, lists, numbers and strings, ready for JSON or YAML."""
    dumped = TypeAdapter(type(value)).dump_python(value, mode="json")
    assert isinstance(dumped, dict)
    return dumped


def digest(value: Any, length: int = 12) -> str:
    """A short hash of a config (or of anything JSON can hold) that changes with any setting."""
    plain = to_dict(value) if dataclasses.is_dataclass(value) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _apply_override(values: dict[str, Any], text: str) -> None:
    key, separator, raw = text.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"Setting {text!r} is not of the form section.key=value.")
    *sections, last = key.strip().split(".")
    node = values
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ValueError(f"Setting {key!r}: {section!r} is a value, not a section.")
        node = child
    node[last] = read_yaml(raw, f"Setting {text!r}")


def _explain(cls: type[Any], error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "unexpected_keyword_argument":
            owner = _owner(cls, item["loc"][:-1])
            known = [f.name for f in dataclasses.fields(owner)] if owner else []
            lines.append(f"{path}: {unknown_name('setting', str(item['loc'][-1]), known)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = item.get("input")
            shown = "" if isinstance(given, Mapping) else f" (given: {given!r})"
            lines.append(f"{path}: {message}{shown}" if path else message)
    return "\n".join(lines)


def _owner(cls: type[Any], path: tuple[int | str, ...]) -> type[Any] | None:
    """The config class that stands at a path of a nested config, if it can be told."""
    owners = [cls]
    for part in path:
        inner = [found for owner in owners for found in _configs_in(_annotation(owner, part))]
        if inner:
            owners = inner
        else:  # an index of a list, or the tag of a union of configs
            owners = [c for c in owners if getattr(c, "kind", None) == part] or owners
    return owners[0] if len(owners) == 1 else None


def _annotation(owner: type[Any], name: int | str) -> Any:
    # Pydantic has resolved the annotations that `from __future__ import annotations` left as text.
    fields = getattr(owner, "__pydantic_fields__", {})
    return fields[name].annotation if name in fields else None


def _configs_in(annotation: Any) -> list[type[Any]]:
    """The config classes that an annotation names, at any depth."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return [annotation]
    return [found for part in get_args(annotation) for found in _configs_in(part)]
