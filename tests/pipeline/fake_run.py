"""A small run directory with real files, for the tests of the report."""

from __future__ import annotations

import io
import json
import tarfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.index import INDEX_DTYPE
from data_prep.shard_set.manifest import (
    FORMAT_VERSION,
    Encoding,
    Manifest,
    Split,
    Statistics,
    hash_class_names,
    manifest_sha256,
    write_manifest,
)
from data_prep.shard_set.yuv import encode_yuv
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import EventLog
from pipeline.run.event_rows import event_of
from pipeline.run.phase import PHASE_LABELS

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

STEPS_PER_EPOCH = 10


def make_images(labels: Labels, size: int = 16) -> Images:
    """A flat colour a class with some noise, uint8 N×size×size×3."""
    random = np.random.default_rng(1)
    colors = random.integers(40, 216, (int(labels.max()) + 1, 1, 1, 3))
    noise = random.integers(-30, 31, (len(labels), size, size, 3))
    return (colors[labels] + noise).astype(np.uint8)


def write_shard_set(
    shards: Path,
    images: Images,
    labels: Labels,
    class_names: Sequence[str],
    encoding: Encoding = "rgb",
    shard_length: int = 64,
) -> None:
    """A shard set that has only the split `val`."""
    shards.mkdir(parents=True)
    starts = range(0, len(labels), shard_length)
    names = tuple(f"val-{number:06d}.tar" for number in range(len(starts)))
    rows: list[tuple[int, int, int, int]] = []
    for number, (name, start) in enumerate(zip(names, starts, strict=True)):
        stop = min(start + shard_length, len(labels))
        rows += _write_tar(shards / name, images, labels, range(start, stop), encoding, number)
    np.save(shards / "val.index.npy", np.array(rows, INDEX_DTYPE))
    checksums = [zlib.crc32(encode(image, encoding)) for image in images]
    np.save(shards / "val.crc32.npy", np.array(checksums, np.uint32))
    split = Split(
        name="val",
        num_samples=len(labels),
        filenames=names,
        shard_lengths=tuple(min(shard_length, len(labels) - start) for start in starts),
        shard_bytes=tuple((shards / name).stat().st_size for name in names),
        shard_sha256=tuple(sha256_of(shards / name) for name in names),
        index_filename="val.index.npy",
        index_sha256=sha256_of(shards / "val.index.npy"),
        checksums_filename="val.crc32.npy",
        checksums_sha256=sha256_of(shards / "val.crc32.npy"),
    )
    write_manifest(shards, _manifest(split, images, tuple(class_names), encoding))


def _write_tar(
    path: Path,
    images: Images,
    labels: Labels,
    samples: range,
    encoding: Encoding,
    shard: int,
) -> list[tuple[int, int, int, int]]:
    rows = []
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            content = encode(images[sample], encoding)
            suffix = "npy" if encoding == "rgb" else "jpg"
            _add(tar, f"{sample:06d}.{suffix}", content)
            # tarfile pads members to blocks of 512 bytes, and `offset` is where the next one begins
            offset = tar.offset - -(-len(content) // 512) * 512
            rows.append((shard, offset, len(content), int(labels[sample])))
            _add(tar, f"{sample:06d}.cls", str(labels[sample]).encode())
    return rows


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def encode(image: Images, encoding: Encoding) -> bytes:
    """One image as the content of its tar member."""
    buffer = io.BytesIO()
    match encoding:
        case "rgb":
            np.save(buffer, image)
        case "jpeg" | "image":
            Image.fromarray(image).save(buffer, "JPEG", quality=95)
        case "yuv420":
            return encode_yuv(image, None)
        case unknown:
            assert_never(unknown)
    return buffer.getvalue()


def _manifest(split: Split, images: Images, names: tuple[str, ...], encoding: Encoding) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        encoding=encoding,
        image_height=images.shape[1],
        image_width=images.shape[2],
        class_names=names,
        class_names_sha256=hash_class_names(names),
        splits={"val": split},
        statistics=Statistics(
            num_images=1,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            pca_stds=(1.0, 1.0, 1.0),
            pca_vectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        ),
        source="synthetic",
        options={},
        seed=0,
        rewritten={},
        rejected={},
    )


def write_config(run: RunDirectory, shards: Path) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    settings = {
        "recipe": "cifar10",
        "config": {
            "seed": 7,
            "epochs": 10,
            "precision": "bf16",
            "data": {"shards": str(shards)},
            "model": {"name": "alexnet_cifar", "dropout": 0.5},
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "git_revision": None,
        "manifest_sha256": manifest_sha256(shards),
        "hardware": "2 × test processor",
    }
    run.config.write_text(json.dumps(settings))


def write_predictions(
    run: RunDirectory, labels: Labels, probabilities: npt.NDArray[np.float32], step: int = 100
) -> None:
    """Save the top 5 of `probabilities`, [n, num_classes]."""
    topk = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    right = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    path = run.predictions("val")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        step=step,
        labels=labels,
        topk_classes=topk,
        topk_probabilities=np.take_along_axis(probabilities, topk, axis=1),
        losses=-np.log(np.maximum(right, 1e-9)),
    )


def make_probabilities(
    labels: Labels, num_classes: int, skill: float, seed: int = 3
) -> npt.NDArray[np.float32]:
    """Those of a network that tends to be right the more, the higher its `skill`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.2, (len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += skill
    logits[np.arange(len(labels)), (labels + 1) % num_classes] += skill / 2
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def start_fields(resumed_from: int | None = None) -> dict[str, Any]:
    """What a `run` event carries."""
    return {
        "resumed_from": resumed_from,
        "world_size": 2,
        "local_batch_size": 64,
        "accumulation_steps": 1,
        "global_batch_size": 128,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "target_steps": 100,
        "device": "cpu",
        "precision": "bf16",
        "num_train_samples": 1280,
        "num_val_samples": 100,
        "forked_from": None,
        "shard_set": "generated shapes",
    }


def train_fields(step: int, speed: float = 1000.0) -> dict[str, Any]:
    """What a `train` event carries after `step` steps."""
    seconds = dict(zip(PHASE_LABELS, (0.02, 0.01, 0.7, 0.1, 0.12, 0.05), strict=True))
    progress = step / 100
    return {
        "loss": 2.3 - 1.6 * progress,
        "top1": 0.1 + 0.7 * progress,
        "learning_rate": 0.1 * (1 - progress),
        "images_per_second": speed,
        "data_wait_ratio": 0.02,
        "phase_seconds": seconds,
        "skipped_steps": 0,
        "grad_norm": None,
    }


def eval_fields(correct1: int, correct5: int, seen: int, expected: int) -> dict[str, Any]:
    """What an `eval` event of the split `val` carries that training has written."""
    return {
        "by": "train",
        "split": "val",
        "views": 1,
        "shard_set": "generated shapes",
        "manifest_sha256": "0" * 64,
        "own_shards": True,
        "top1": correct1 / seen,
        "top5": correct5 / seen,
        "loss": 2.3 - 1.5 * correct1 / seen,
        "correct1": correct1,
        "correct5": correct5,
        "seen": seen,
        "expected": expected,
        "seconds": 0.5,
    }


def event(kind: str, step: int, time: float = 0.0, **fields: Any) -> Any:
    """As it is read from a row with these fields, in which NaN is null."""
    fields = {name: None if value != value else value for name, value in fields.items()}
    row = {"kind": kind, "step": step, "epoch": step / STEPS_PER_EPOCH, "time": time}
    found = event_of(row | fields)
    assert found is not None
    return found


class RunHistory:
    """Writes the events of a run at given steps."""

    def __init__(self, run: RunDirectory) -> None:
        self._log = EventLog(run.events)

    def write(self, kind: str, step: int, **fields: Any) -> None:
        self._log.write(event(kind, step, time.time(), **fields))

    def close(self) -> None:
        self._log.close()


def write_history(run: RunDirectory, correct: Sequence[tuple[int, int]], seen: int) -> None:
    """A run of ten epochs that was asked to stop after four and went on.

    `correct[i]` are the counts of the evaluation after epoch `i + 1`.
    """
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    for epoch, (correct1, correct5) in enumerate(correct, start=1):
        if epoch == 5:
            history.write("signal", 40, source="SIGTERM")
            history.write("checkpoint", 40, **checkpoint_fields("preempt"))
            history.write("end", 40, outcome="stopped")
            history.write("run", 40, **start_fields(resumed_from=40))
        for step in (10 * epoch - 5, 10 * epoch):
            history.write("train", step, **train_fields(step, speed=900.0 + 10 * step % 70))
        history.write("eval", 10 * epoch, **eval_fields(correct1, correct5, seen, seen))
        history.write("checkpoint", 10 * epoch, **checkpoint_fields("periodic"))
    history.write("end", 10 * len(correct), outcome="completed")
    history.close()


def checkpoint_fields(reason: str) -> dict[str, Any]:
    """What a `checkpoint` event carries."""
    return {
        "path": "checkpoints/step",
        "num_bytes": 15_000_000,
        "seconds": 0.25,
        "reason": reason,
    }


def write_run(
    root: Path,
    class_names: Sequence[str],
    *,
    samples_per_class: int = 12,
    encoding: Encoding = "rgb",
    skill: float = 3.0,
    size: int = 16,
) -> RunDirectory:
    """A whole run with its shard set under `root`."""
    labels = np.tile(np.arange(len(class_names)), samples_per_class)
    shards = root / "shards"
    write_shard_set(shards, make_images(labels, size), labels, class_names, encoding)
    run = RunDirectory(root / "run")
    write_config(run, shards)
    write_predictions(run, labels, make_probabilities(labels, len(class_names), skill))
    seen = len(labels)
    correct = [(seen * e // 14, seen * (e + 3) // 14) for e in (1, 4, 5, 6, 7, 8, 9, 8, 10, 9)]
    write_history(run, correct, seen)
    return run
