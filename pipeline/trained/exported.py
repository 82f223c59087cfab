"""The folder of an export: `config.json` beside `model.safetensors`. Nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config import saved
from pipeline.config.schema import Config
from pipeline.run import dataset
from pipeline.run.dataset import Dataset
from pipeline.run.event_rows import event_of, row_of
from pipeline.run.events import EvalEvent
from pipeline.run.format_version import check_format_version
from pipeline.trained.stored import (
    Origin,
    StoredNetwork,
    Weights,
    checked_weights,
    sha256_of_weights,
)

EXPORT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def is_export(folder: Path) -> bool:
    """Whether there are weights that `read_export` reads."""
    return (folder / WEIGHTS).is_file()


def to_json(config: Config, data: Dataset, origin: Origin, folder: Path) -> dict[str, Any]:
    """The part of an export's `config.json` that is read back; a mean image goes into `folder`.

    Raises `OSError`.
    """
    return {
        "format_version": EXPORT_VERSION,
        "recipe": origin.recipe,
        "run": origin.run,
        "step": origin.step,
        "began": origin.began,
        "weights_sha256": origin.weights_sha256,
        "config": saved.to_json(config),
        "dataset": dataset.to_json(data, folder),
        "evaluations": [row_of(event) for event in origin.evaluations],
    }


def read_export(folder: Path) -> StoredNetwork:
    """Read an export; raises `ValueError` if it is not whole, or of a newer version."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_bytes())
        check_format_version(found.get("format_version"), EXPORT_VERSION, path)
        events = [event_of(row) for row in found["evaluations"]]
        origin = Origin(
            recipe=str(found["recipe"]),
            run=str(found["run"]),
            step=int(found["step"]),
            weights_sha256=str(found["weights_sha256"]),
            evaluations=tuple(event for event in events if isinstance(event, EvalEvent)),
            began=found["began"],
        )
        config = saved.from_json(found["config"])
        data = dataset.from_json(found["dataset"], path)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} is not an export: it has no {CONFIG} beside {WEIGHTS}; export again"
        ) from None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not as an export wrote it ({error}): export again") from None
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
