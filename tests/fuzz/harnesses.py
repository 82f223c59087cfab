"""All fuzzers, by name. Their modules are imported one at a time: only some need torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from tests.fuzz.harness import Harness

_MODULES: Mapping[str, tuple[str, ...]] = {
    "shard_files": (
        *("tar", "samples", "manifest", "shard-set", "beton", "pixels", "planes", "jpeg-header"),
        *("conversion-plan", "record"),
    ),
    "raw_files": (
        *("cifar10", "cifar10-folder", "imagenet", "devkit", "meta", "ground-truth", "solution"),
        *("csv-table", "class-names", "parquet"),
    ),
    "run_files": (
        *("config", "events", "rank-file", "target", "dataset", "predictions", "neighbours"),
        *("lock", "checkpoint-facts", "conversion-metrics"),
    ),
    "weight_files": ("torch-file", "checkpoint-state", "safetensors"),
}
NAMES = tuple(name for names in _MODULES.values() for name in names)


def harness_of(name: str) -> Harness:
    """The fuzzer of that name."""
    (module,) = (module for module, names in _MODULES.items() if name in names)
    harnesses: tuple[Harness, ...] = importlib.import_module(f"tests.fuzz.{module}").HARNESSES
    (found,) = (harness for harness in harnesses if harness.name == name)
    return found
