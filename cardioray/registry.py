"""Named things and their records: backbones, tasks, phantoms."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

InfoT = TypeVar("InfoT")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name nobody registered: names the closest and lists all known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


@dataclass
class Registry(Generic[InfoT]):
    """A mapping from names to immutable records that answers an unknown name with the known ones.

    Attributes:
        kind: what is registered, as it reads in an error ("backbone").
    """

    kind: str

    def __post_init__(self) -> None:
        self._records: dict[str, InfoT] = {}

    def add(self, name: str, record: InfoT) -> InfoT:
        """Register a record.

        Raises:
            ValueError: when the name is taken.
        """
        if name in self._records:
            raise ValueError(f"{self.kind} {name!r} is registered already.")
        self._records[name] = record
        return record

    def register(self, name: str) -> Callable[[InfoT], InfoT]:
        """Decorator form of `add`."""
        return lambda record: self.add(name, record)

    def get(self, name: str) -> InfoT:
        """The record of a name.

        Raises:
            ValueError: when the name is unknown; the text lists the known names.
        """
        if name not in self._records:
            raise unknown_name(self.kind, name, self._records)
        return self._records[name]

    def names(self, pattern: str = "*") -> list[str]:
        """Registered names that match a shell wildcard, in order of registration."""
        return [name for name in self._records if fnmatch.fnmatch(name, pattern)]

    def matching(self, pattern: str) -> list[str]:
        """As `names`, for a user who wants at least one.

        Raises:
            ValueError: when nothing matches; the text lists the known names.
        """
        if not (found := self.names(pattern)):
            raise unknown_name(self.kind, pattern, self._records)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)
