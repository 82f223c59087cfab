"""The source `webdataset`: WebDataset tars that other programs wrote, read by position."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.shard_set.foreign_tar import (
    FieldNames,
    ForeignSample,
    ForeignTarError,
    walk_samples,
)
from data_prep.shard_set.keys import make_keys
from data_prep.sources.labels import number_labels
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import FileReader, Source, SourceError
from data_prep.sources.splits import by_split, find_files


def open_webdataset(
    root: Path,
    fields: FieldNames,
    num_threads: int,
    *,
    class_names: tuple[str, ...] | None = None,
    first_label: int = 0,
) -> Source:
    """The samples of the files `*.tar` below `root`, which may be one tar.

    A tar belongs to the split that its name, or its folder's, begins with.
    Raises `SourceError` if a tar is damaged, or a sample has no image or label.
    """
    folder = root if root.is_dir() else root.parent
    splits = by_split(str(path.relative_to(folder)) for path in find_files(root, ".tar"))
    found: dict[str, list[tuple[str, ForeignSample]]] = {}

    def walk(name: str) -> list[tuple[str, ForeignSample]]:
        return [(name, sample) for sample in walk_samples(folder / name, fields)]

    try:
        with ThreadPoolExecutor(num_threads) as walkers:
            for split, files in splits.items():
                found[split] = [each for part in walkers.map(walk, files) for each in part]
    except ForeignTarError as error:
        raise SourceError(str(error)) from None
    names, labels = number_labels(
        {split: [sample.label for _, sample in samples] for split, samples in found.items()},
        class_names,
        f"the set of tars {root}",
        first_label,
    )
    return Source(
        name="webdataset",
        class_names=names,
        splits={
            split: SampleTable(
                map(
                    Sample,
                    make_keys([f"{sample.key}.x" for _, sample in samples]),
                    labels[split].tolist(),
                    map(_locator, samples),
                )
            )
            for split, samples in found.items()
        },
        reader=FileReader(folder),
        default_encoding="jpeg",
        selection={} if fields.image is None else {"image_field": fields.image},
    )


def _locator(found: tuple[str, ForeignSample]) -> str:
    tar, sample = found
    name = sample.key.replace(":", "_")
    return f"{tar}:{sample.image.offset}+{sample.image.num_bytes}:{name}"
