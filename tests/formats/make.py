"""Makes the fixtures of the format tests, with the project's own commands as they are now.

    python -m tests.formats.make v1

makes `tests/formats/v1`. A folder that exists is never written to: what users have on their disks
cannot be made anew either. Where a format gets a new version, a new folder is made, `v2`, and the
tests hold for both. It needs ffcv (`make ffcv`), and a minute.

    python -m tests.formats.make --weights v1

adds to `v1/weights.json` what this machine computes, if no machine of its class is in it yet.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.formats import states
from tests.formats.fixtures import (
    AVX2,
    BETONS,
    CONTINUED,
    CONVERSIONS,
    HALVES,
    LARGE,
    MORE_EPOCHS,
    NETWORKS,
    REPOSITORY,
    RUN,
    RUN_EPOCHS,
    RUN_SHARDS,
    SMALL,
    STEPS_PER_EPOCH,
    WEIGHTS,
    command,
    copy_images,
    ends_of_attempts,
    libraries,
    machine_class,
    rows_of,
    run_module,
    shard,
    shard_in_halves,
    unpack_run,
    words_of,
)

_PLACE = Path("/tmp/alexnet-2012-formats")
"""Where everything is made: paths in the files are of this folder."""

_SILENT = (
    *("features.15.weight", "features.15.bias"),
    *("classifier.0.bias", "classifier.3.bias", "classifier.6.weight"),
)
"""With zeros here no gradient reaches another layer of `alexnet_cifar` than the last biases: its
weights stay short patterns while it trains, and a checkpoint of 10 MB compresses to kilobytes."""


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.formats.make", description="Make fixtures of the format tests."
    )
    parser.add_argument("version", help="the new folder's name, such as v2")
    parser.add_argument("--weights", action="store_true", help="add this machine's weights only")
    options = parser.parse_args(words)
    target = Path(__file__).parent / options.version
    if options.weights:
        _add_weights(target)
        return
    if target.exists():
        parser.error(f"{target} exists: a new version gets a new folder")
    _PLACE.mkdir()
    try:
        version = _PLACE / options.version
        _make(version)
        shutil.copytree(version, target, symlinks=True)
    finally:
        shutil.rmtree(_PLACE)
    _add_weights(target)


def _make(version: Path) -> None:
    _draw_images(version / "images")
    images = copy_images(version, _PLACE / "images")
    shards = version / "shards"
    shard_in_halves(images, version / "begun", 0)
    for name, options in CONVERSIONS.items():
        if name == HALVES:
            shard_in_halves(images, shards / name, 0, 1)
            run_module("data_prep", "merge", shards / name)
        else:
            shard(images, shards / name, options)
    for name in BETONS:
        path = _PLACE / f"{name}.beton"
        run_module("data_prep", "beton", shards / name, path)
        (version / f"{name}.beton.xz").write_bytes(lzma.compress(path.read_bytes()))
    _make_run(version, shards)
    large = _PLACE / "large"
    shard(images, large, LARGE)
    _write(version / "networks.json", _layouts(shards, large))
    _write(version / "libraries.json", libraries())
    _write(version / "weights.json", {})


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _draw_images(folder: Path) -> None:
    """Three classes of pictures of all kinds and sizes."""
    random = np.random.default_rng(2012)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog", "owl"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                low = random.integers(0, 256, (4, 5, 3), np.uint8)
                size = (int(random.integers(28, 60)), int(random.integers(28, 60)))
                image = Image.fromarray(low).resize(size, Image.Resampling.BICUBIC)
                _save(image, folder / split / name / f"{number:04d}", (name, number))


def _save(image: Image.Image, path: Path, kind: tuple[str, int]) -> None:
    match kind:
        case ("cat", 1):
            image.convert("L").save(path.with_suffix(".jpg"))
        case ("cat", 2):
            image.save(path.with_suffix(".jpg"), progressive=True)
        case ("dog", 0):
            image.save(path.with_suffix(".png"))
        case ("dog", 1):
            exif = image.getexif()
            exif[0x0112] = 6  # turned
            image.save(path.with_suffix(".jpg"), exif=exif)
        case ("dog", 2):
            image.quantize(16).save(path.with_suffix(".png"))
        case ("owl", 1):
            image.convert("CMYK").save(path.with_suffix(".jpg"))
        case ("owl", 3):
            image.putalpha(100)
            image.save(path.with_suffix(".png"))
        case _:
            image.save(path.with_suffix(".jpg"), quality=90)


def _make_run(version: Path, shards: Path) -> None:
    """A run that is prepared, fails at a damaged image, is killed, is stopped, and completes."""
    run, good = _PLACE / "run", shards / RUN_SHARDS
    damaged = _with_damage(good, _PLACE / "damaged")
    run_module("pipeline.train", *_words(good, run), "--max-steps", 1)
    _make_compressible(run)
    none = ("--data.max_corrupt_ratio", 0)
    run_module("pipeline.train", *_words(damaged, run), *none, code=1)
    one = ("--data.max_corrupt_ratio", 0.1)
    with _started(*_words(damaged, run), *one) as job:
        _wait_for_step(run, 2 * 2 * STEPS_PER_EPOCH + 2)
        job.kill()
    with _started(*_words(good, run)) as job:
        _wait_for_step(run, 2 * 2 * STEPS_PER_EPOCH + 1, attempt=4)
        (run / "STOP").touch()
        assert job.wait() == 75
    run_module("pipeline.train", *_words(good, run))
    run_module("pipeline.evaluate", "--run-dir", run, "--shards", shards / "jpeg", "--json")
    run_module("pipeline.evaluate", "--run-dir", run, "--checkpoint", "best")
    output = run_module("pipeline.evaluate", "--run-dir", run, "--json").stdout
    expected = {
        "evaluation": json.loads(output),
        "attempts": [
            words_of(run, num_rows, _PLACE / f"attempt-{number}")
            for number, num_rows in enumerate(ends_of_attempts(run))
        ],
    }
    _write(version / "expected.json", expected)
    kept = version / "run"
    shutil.copytree(run, kept, ignore=shutil.ignore_patterns("checkpoints", ".lock"))
    with tarfile.open(kept / "checkpoints.tar.xz", "w:xz", preset=9) as archive:
        archive.add(run / "checkpoints", "checkpoints")


def _words(shards: Path, run: Path) -> list[object]:
    return [*RUN, "--epochs", RUN_EPOCHS, "--data.shards", shards, "--run-dir", run]


def _with_damage(shards: Path, target: Path) -> Path:
    """A copy with a byte of one image of `train` changed."""
    shutil.copytree(shards, target)
    path = target / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[2000] ^= 255
    path.write_bytes(content)
    return target


def _started(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command("pipeline.train", *arguments), cwd=REPOSITORY)


def _wait_for_step(run: Path, step: int, attempt: int = 3) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        rows = rows_of(run)
        is_on = sum(row["kind"] == "run" for row in rows) >= attempt
        if is_on and rows[-1]["kind"] == "train" and rows[-1]["step"] >= step:
            return
        time.sleep(0.0005)
    raise TimeoutError(step)


def _make_compressible(run: Path) -> None:
    """Put patterns into the checkpoint of the run's first step."""
    from pipeline.run import checkpoint  # here, as it may be called otherwise when `v2` is made

    state = states.load(states.newest(run))
    layout = states.layout_of({name: state[name] for name in ("model", "optimizer")})
    state |= states.filled(layout)
    for name, tensor in states.tensors_of(state):
        if any(silent in name for silent in _SILENT):
            tensor.zero_()
    checkpoint.save(run / "checkpoints", 1, state)


def _layouts(shards: Path, large: Path) -> Mapping[str, Any]:
    layouts = {}
    for name, options in NETWORKS.items():
        source = shards / RUN_SHARDS if name.startswith(SMALL) else large
        with tempfile.TemporaryDirectory(dir=_PLACE) as folder:
            run = Path(folder)
            words = (*options, "--data.shards", source, "--run-dir", run, "--max-steps", 1)
            run_module("pipeline.train", *words)
            layouts[name] = {
                "config": json.loads((run / "config.json").read_bytes()),
                "state": states.layout_of(states.load(states.newest(run))),
            }
    return layouts


def _add_weights(version: Path) -> None:
    """What this machine computes, and what it does when held to AVX2."""
    path = version / "weights.json"
    known = json.loads(path.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        large = scratch / "large"
        shard(copy_images(version, scratch / "images"), large, LARGE)
        for number, environment in enumerate(({}, AVX2)):
            key = machine_class(environment)
            for name in (*WEIGHTS, CONTINUED):
                entry = known.setdefault(name, {})
                if key not in entry:
                    run = scratch / f"{name}-{number}"
                    words = weights_words(version, name, large, run)
                    run_module("pipeline.train", *words, environment=environment, on_one_core=True)
                    entry[key] = result_of(run)
                    shutil.rmtree(run)
    _write(path, known)


def weights_words(version: Path, name: str, large: Path, run: Path) -> list[object]:
    """The arguments of `pipeline.train` for the run called `name` in weights.json."""
    small = version / "shards" / RUN_SHARDS
    if name == CONTINUED:
        unpack_run(version, run.parent).rename(run)
        return [*RUN, "--epochs", MORE_EPOCHS, "--data.shards", small, "--run-dir", run]
    shards = small if name == "cifar10" else large
    return [*WEIGHTS[name], "--data.shards", shards, "--run-dir", run]


def result_of(run: Path) -> dict[str, Any]:
    """Losses, and the hash and a summary of the weights."""
    state = states.load(states.newest(run))
    return {
        "losses": [row["loss"] for row in rows_of(run) if row["kind"] == "train"],
        "sha256": states.sha256_of(state),
        "weights": states.summary_of(state),
    }


if __name__ == "__main__":
    main()
