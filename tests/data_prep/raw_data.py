"""Raw images of all kinds, and the command line, for the tests of data_prep."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.shard_set.manifest import WrittenEncoding
from data_prep.shard_set.pixels import Pixels
from tests.machine import DEADLINE_SECONDS, wait_until

ENCODINGS: tuple[WrittenEncoding, ...] = ("jpeg", "rgb")
"""Those that keep the pixels of a JPEG; `yuv420` has tests of its own."""
REPOSITORY = Path(__file__).parents[2]
HEIGHT, WIDTH = 40, 60


def make_pixels(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """A smooth picture that has no symmetry, uint8 height×width×3."""
    low = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The content of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0, height: int = HEIGHT, width: int = WIDTH, **options: Any) -> bytes:
    return encode(Image.fromarray(make_pixels(seed, height, width)), "JPEG", **options)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png_of_size(width: int, height: int) -> bytes:
    """A small file that claims to be a huge image."""
    return _png(width, height, 8, 2, bytes(1000))


def deep_png(values: npt.NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits a value, H×W×N: gray, gray and alpha, RGB or RGBA, by N."""
    height, width, channels = values.shape
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return _png(
        width, height, 16, colours, b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    )


def _png(width: int, height: int, bits: int, colours: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def write_folder(
    root: Path, num_train: int = 4, num_val: int = 2, classes: tuple[str, ...] = ("cat", "dog")
) -> Path:
    """A folder of JPEGs with that many images a class."""
    for split, count in (("train", num_train), ("val", num_val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                content = jpeg(seed=1000 * (split == "val") + 100 * label + number)
                (folder / f"{number:04d}.jpg").write_bytes(content)
    return root


def run_cli(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m data_prep` in a process of its own, without how far it was meanwhile."""
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        **options,
    )
    done.stderr = without_progress(done.stderr)
    return done


def start_held(
    folder: Path, num_shards: int, *arguments: object, num_samples: int = 1
) -> subprocess.Popen[str]:
    """A conversion that holds still in the middle of a shard: see `tests.data_prep.held_cli`.

    However late a test looks, it is not over: `wait_until_held`, and `let_go` if it is to go on.
    """
    folder.mkdir(exist_ok=True)
    words = [folder, num_shards, num_samples, *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.data_prep.held_cli", *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def errors_of(job: subprocess.Popen[str]) -> str:
    """What a job has said when it ends, without how far it was meanwhile."""
    return without_progress(job.communicate(timeout=DEADLINE_SECONDS)[1])


def without_progress(errors: str) -> str:
    """Without the lines that a log gets every five seconds, which a busy machine takes for little.

    sharding: 179 of 22,000 samples, 36 a second, 0:10:14 left
    """
    return re.sub(
        r"^\w+: [\d,]+ of [\d,]+ \w+, [\d,]+ a second.*\n", "", errors, flags=re.MULTILINE
    )


def wait_until_held(folder: Path, num_workers: int = 1) -> None:
    """Until so many workers hold still."""
    wait_until(lambda: len(list(folder.glob("held-*"))) == num_workers)


def let_go(folder: Path) -> None:
    (folder / "go-on").touch()


def hash_tree(folder: Path) -> dict[str, str]:
    """sha256 of every file, by name; whatever lies about counts."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copy_tree(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
