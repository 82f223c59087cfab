"""All fuzzers, by name. Their modules are imported one at a time: only some need torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from tests.fuzz.harness import Harness

_MODULES: Mapping[str, tuple[str, ...]] = {
    "shard_files": ("tar", "samples", "manifest", "shard-set", "beton"),
    "image_files": ("pixels", "planes", "jpeg-header", "raw-image"),
    "kept_files": ("conversion-plan", "record", "shard-record", "input-stamps", "unpacked"),
    "reader_files": ("pixel-reader", "jpeg-reader", "folder-index"),
    "raw_files": (
        *("cifar10", "cifar10-folder", "imagenet", "devkit", "meta", "ground-truth", "solution"),
    ),
    "table_files": (
        *("csv-table", "annotations", "class-names", "parquet", "parquet-table", "label-member"),
    ),
    "run_files": (
        *("config", "events", "rank-file", "target", "dataset", "predictions", "neighbours"),
        *("lock", "checkpoint-facts", "conversion-metrics", "log", "best"),
    ),
    "store_values": ("heartbeat", "first-failure"),
    "weight_files": (
        *("torch-file", "checkpoint-state", "checkpoint-settings", "safetensors", "export"),
    ),
}
NAMES = tuple(name for names in _MODULES.values() for name in names)


def harness_of(name: str) -> Harness:
    """The fuzzer of that name."""
    (module,) = (module for module, names in _MODULES.items() if name in names)
    harnesses: tuple[Harness, ...] = importlib.import_module(f"tests.fuzz.{module}").HARNESSES
    (found,) = (harness for harness in harnesses if harness.name == name)
    return found
