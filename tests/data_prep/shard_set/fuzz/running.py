"""Builds the fuzzer, runs it, and looks at what it found."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.shard_set.pixels import Window
from tests.data_prep.shard_set.decoders import crop
from tests.data_prep.shard_set.fuzz.corpus import make_corpus
from tests.data_prep.shard_set.second_look import is_right

HERE = Path(__file__).parent
SOURCES = HERE.parents[3] / "data_prep/shard_set/c"
FLAGS = (
    *("-g", "-O1", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)
LIBRARIES = ("-ljpeg", "-lm")
_CASE = struct.Struct("I4i")
"""In front of a JPEG: its size, and the window."""


class Outcome(NamedTuple):
    """How many inputs there were, and how many of them."""

    inputs: int
    answered: int
    """Our decoder gave pixels."""
    refused: int
    """libjpeg had a complaint."""
    doubtful: int
    """Both."""


class FoundError(Exception):
    """The fuzzer found something: what, the window, and the JPEG in hexadecimal digits."""


def has_sanitizers() -> bool:
    """Whether gcc, libjpeg's headers, and libasan and libubsan are there."""
    program = "#include <stdio.h>\n#include <jpeglib.h>\nint main(void) { return 0; }\n"
    command = ("gcc", *FLAGS, "-x", "c", "-", *LIBRARIES, "-o", os.devnull)
    try:
        return subprocess.run(command, input=program.encode(), capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def build(folder: Path) -> Path:
    """Compile the fuzzer with all C code of shard sets."""
    program = folder / "fuzz"
    sources = sorted((*SOURCES.glob("*.c"), *HERE.glob("*.c")))
    subprocess.run(("gcc", *FLAGS, *sources, *LIBRARIES, "-o", program), check=True)
    return program


def fuzz(program: Path, seed: int, seconds: int, iterations: int) -> Outcome:
    """Run until one of the limits; raises `FoundError`. Files go to the program's folder."""
    corpus, current, doubtful = (program.with_name(name) for name in ("corpus", "current", "doubt"))
    corpus.write_bytes(
        b"".join(struct.pack("I", len(content)) + content for content in make_corpus())
    )
    numbers = map(str, (seed, seconds, iterations))
    done = subprocess.run(
        (program, corpus, current, doubtful, *numbers), capture_output=True, text=True, check=False
    )
    if done.returncode:
        window, content = next(_cases(current.read_bytes()))
        raise FoundError(f"{done.stderr}\nwindow {(*window,)} of {content.hex()}")
    for window, content in _cases(doubtful.read_bytes()):
        if not is_right(content, window, crop(content, window)):
            message = "libjpeg cannot confirm the pixels"
            raise FoundError(f"{message}\nwindow {(*window,)} of {content.hex()}")
    return Outcome(*map(int, done.stdout.split()))


def _cases(content: bytes) -> Iterator[tuple[Window, bytes]]:
    place = 0
    while place < len(content):
        size, *window = _CASE.unpack_from(content, place)
        place += _CASE.size + size
        yield Window(*window), content[place - size : place]
