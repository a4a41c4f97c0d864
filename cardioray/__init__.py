"""CardioRay: cardiac-imaging models on Ray, from stored studies to served answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cardioray.studies import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    # `import cardioray` stays instant: torch is loaded when a model is.
    if name == "load":
        from cardioray.studies import load

        return load
    raise AttributeError(f"module 'cardioray' has no attribute {name!r}")
