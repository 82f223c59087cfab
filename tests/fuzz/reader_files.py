"""Fuzzers of shard sets as the trainer and others read them: any file of a set may be damaged."""

from __future__ import annotations

import contextlib
import functools
import shutil
from pathlib import Path

import numpy as np

from data_prep.look.look import describe, look
from data_prep.shard_set.foreign import describe_path
from data_prep.shard_set.manifest import MANIFEST_NAME, ShardSetError
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.data.augment.crop_policy import evaluation_crop_policy
from pipeline.data.cache.shard_cache import ShardSet
from pipeline.data.readers.open import open_reader
from tests.fuzz.harness import Harness, Target, check_types, expect
from tests.fuzz.mutation import change_json
from tests.fuzz.packed_mutation import change_file
from tests.fuzz.shard_files import SHARD_SETS, adapt


def _labels_and_images(shards: Path, split: str) -> tuple[list[int], bytes]:
    """As evaluation reads them."""
    shard_set = ShardSet.opened(DataConfig(shards=str(shards)))
    crop_policy = evaluation_crop_policy(AugmentConfig(), shard_set.manifest.image_size)
    config = DataConfig(decode_threads=1)
    reader = open_reader(config, shard_set, split, crop_policy, None, None)
    with contextlib.closing(reader):
        images = np.zeros((reader.num_samples, *reader.image_shape), np.uint8)
        labels, cost, _ = reader.read(np.arange(reader.num_samples), 0, images)
    expect(cost.num_replaced == 0, "damaged images are replaced in an evaluation")
    return labels.tolist(), images.tobytes()


def _reader(encoding: str, folder: Path) -> Target:
    """A tar's damage is found by checksums; any other file has a hash, which may fit the damage."""
    shards = folder / "shards"
    shutil.copytree(SHARD_SETS / encoding, shards)
    names = sorted(path.name for path in shards.iterdir() if path.suffix in (".npy", ".tar"))
    whole = {name: (shards / name).read_bytes() for name in (*names, MANIFEST_NAME)}
    expected = {split: _labels_and_images(shards, split) for split in ("train", "val")}
    num_classes = 1 + max(label for labels, _ in expected.values() for label in labels)

    def read(content: bytes) -> None:
        name = names[content[0] % len(names)] if content else names[0]
        (shards / name).write_bytes(content[1:])
        try:
            if is_adapted := name.endswith(".npy"):
                adapt(shards)
            describe(look(shards, 3))
            for split, right in expected.items():
                labels, images = found = _labels_and_images(shards, split)
                expect(is_adapted or found == right, "the tar's damage has changed an image")
                expect(all(0 <= label < num_classes for label in labels), "labels of no class")
                expect(is_adapted or len(images) == len(right[1]), "other sizes")
        finally:
            for each in (name, MANIFEST_NAME):
                (shards / each).write_bytes(whole[each])

    return Target([bytes([row]) + whole[name] for row, name in enumerate(names)], read)


def _folder_index(folder: Path) -> Target:
    """A JSON document in a folder that is no shard set: what it is, or that this is not known."""
    path = folder / "index.json"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        check_types(describe_path(folder), str | None)

    return Target([b'{"splits": {"train": {}}}', b'{"shards": [1]}', b'{"chunks": []}'], read)


HARNESSES = (
    Harness(
        name="pixel-reader",
        prepare=functools.partial(_reader, "pixels"),
        errors=(ShardSetError, OSError),
        changes=(change_file,),
    ),
    Harness(
        name="jpeg-reader",
        prepare=functools.partial(_reader, "scaled"),
        errors=(ShardSetError, OSError),
        changes=(change_file,),
    ),
    Harness(name="folder-index", prepare=_folder_index, errors=(), changes=(change_json,)),
)
