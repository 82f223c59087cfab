"""Trains, evaluates and reports on shard sets, on one process or many.

`from pipeline import load_model` opens a trained network that classifies images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.trained.classify import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """`load_model` once it is asked for: much of `pipeline` works without torch."""
    if name == "load_model":
        from pipeline.trained.classify import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
