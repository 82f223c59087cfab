"""Notices raw images that were replaced since they were converted.

While a conversion goes on, the record of each shard has the stamps of its images (see
`sources.Reader`). Those of a finished shard set lie beside its folder, in SHARDS.inputs.npz:
stamps depend on when files were written, and the bytes of a shard set must not.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.convert.assignment import ShardName
from data_prep.convert.output import ConversionError
from data_prep.shard_set.fields import name_some
from data_prep.shard_set.files import atomic_writer, describe
from data_prep.sources.source import Source

_log = logging.getLogger(__name__)

Stamps = npt.NDArray[np.uint64]
"""Of all samples planned for a shard, in their order."""
Rows = Mapping[ShardName, npt.NDArray[np.intp]]
"""The rows of the split that go into each shard."""

_NUM_THREADS = 8
"""On network file systems each look at a file is a round trip."""


def check_unchanged(
    shards: Path, source: Source, rows: Rows, stamps: Mapping[ShardName, Stamps]
) -> None:
    """Raise `ConversionError` if images of these shards have other stamps now."""

    def find_replaced(name: ShardName) -> list[str]:
        samples = source.pick(name.split, rows[name])
        return [
            sample.locator
            for sample, before in zip(samples, stamps[name].tolist(), strict=True)
            if source.reader.stamp(sample) != before
        ]

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        replaced = list(itertools.chain.from_iterable(threads.map(find_replaced, stamps)))
    if replaced:
        raise ConversionError(
            f"images in finished shards of {shards} were replaced since ({name_some(replaced)}), "
            f"{len(replaced)} in all: put them back, give another --output or empty this one, or "
            "keep these shards as they are with --ignore-changes"
        )


def save_stamps(shards: Path, manifest_sha256: str, stamps: Sequence[Stamps]) -> None:
    """Keep the stamps of a shard set before it is published; a failure is only logged."""
    path = _path(shards)
    try:
        with atomic_writer(path) as file:
            np.savez(
                file,
                allow_pickle=False,
                manifest_sha256=np.array(manifest_sha256),
                stamps=np.concatenate(stamps),
            )
    except OSError as error:
        _log.warning("%s; that images are replaced later will not be noticed", describe(error))


def load_stamps(shards: Path, manifest_sha256: str, rows: Rows) -> Mapping[ShardName, Stamps]:
    """The stamps of all shards in `rows`; none, with a line in the log, if they are not there."""
    path = _path(shards)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            stamps, ends = arrays["stamps"], np.cumsum([len(chosen) for chosen in rows.values()])
            is_whole = stamps.dtype == np.uint64 and stamps.shape == (ends[-1],)
            if is_whole and str(arrays["manifest_sha256"]) == manifest_sha256:
                return dict(zip(rows, np.split(stamps, ends[:-1]), strict=True))
    except Exception as error:  # a damaged file raises anything
        _log.debug("%s: %s", path, error)
    _log.info("%s is not there or of another shard set: images were not compared", path)
    return {}


def _path(shards: Path) -> Path:
    shards = shards.resolve()
    return shards.with_name(f"{shards.name}.inputs.npz")
