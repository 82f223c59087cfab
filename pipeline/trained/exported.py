"""The folder of an export: `config.json` beside `model.safetensors`. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import saved
from pipeline.config.schema import Config
from pipeline.run import dataset
from pipeline.run.dataset import Dataset
from pipeline.run.event_rows import event_of, row_of
from pipeline.run.events import EvalEvent
from pipeline.run.format_version import read_versioned
from pipeline.trained.stored import (
    Origin,
    StoredNetwork,
    Weights,
    checked_weights,
    sha256_of_weights,
)

EXPORT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"

_ORIGIN = {"recipe": str, "run": str, "step": int, "weights_sha256": str, "began": Mapping | None}
"""What of an `Origin` is kept as it is."""


def is_export(folder: Path) -> bool:
    """Whether there are weights that `read_export` reads."""
    return (folder / WEIGHTS).is_file()


def to_json(config: Config, data: Dataset, origin: Origin, folder: Path) -> dict[str, Any]:
    """The part of an export's `config.json` that is read back; a mean image goes into `folder`.

    Raises `OSError`.
    """
    return {
        "format_version": EXPORT_VERSION,
        **{name: getattr(origin, name) for name in _ORIGIN},
        "config": saved.to_json(config),
        "dataset": dataset.to_json(data, folder),
        "evaluations": [row_of(event) for event in origin.evaluations],
    }


def read_export(folder: Path) -> StoredNetwork:
    """Read an export; raises `ValueError` if it is not whole, or of a newer version."""
    path = folder / CONFIG
    try:
        found = read_versioned(path, EXPORT_VERSION)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} is not an export: it has no {CONFIG} beside {WEIGHTS}; export again"
        ) from None
    try:
        for name, kind in _ORIGIN.items():
            if not isinstance(found[name], kind):
                raise TypeError(f"{name} is {found[name]!r:.40}")
        events = [event_of(row) for row in found["evaluations"]]
        origin = Origin(
            **{name: found[name] for name in _ORIGIN},
            evaluations=tuple(event for event in events if isinstance(event, EvalEvent)),
        )
        config, data = saved.from_json(found["config"]), found["dataset"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not as an export wrote it ({error}): export again") from None
    data = dataset.from_json(data, path)
    weights = read_safetensors(folder / WEIGHTS)
    if sha256_of_weights(weights) != origin.weights_sha256:
        raise ValueError(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} beside it names: copy "
            "both again"
        )
    return StoredNetwork(path=folder, weights=weights, config=config, dataset=data, origin=origin)


def read_safetensors(path: Path) -> Weights:
    """The tensors of a .safetensors file, on the CPU; raises `ValueError` if it is damaged."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(
            f"{path} is read with the package safetensors, which is not installed: "
            "pip install 'alexnet-2012[export]'"
        ) from None
    try:
        return checked_weights(load_file(path), path)
    except (SafetensorError, OverflowError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from None
