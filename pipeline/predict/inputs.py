"""Finds the images that a user names: files, those in folders and tars, standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.shard_set.files import describe, path_option
from data_prep.shard_set.foreign_tar import ForeignTarError
from data_prep.shard_set.image_files import is_image_file, left_out, walk
from data_prep.shard_set.streams import say
from data_prep.shard_set.tar_images import walk_images
from data_prep.shard_set.tar_walk import Member

STANDARD_INPUT = "-"
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class Input:
    """One image to classify."""

    name: str
    read: Callable[[], bytes]
    """Its content; raises `OSError`, or `ValueError` if there can be none."""
    label: int | str | None = None
    """What a tar says that it is: a number, or the name of a class."""


def find_inputs(sources: Sequence[str], complain: Callable[[str], None]) -> list[Input]:
    """All images of the files, folders and tars, in the order given, those of a folder by name.

    A file that is named is taken for an image whatever it is. In folders hidden files are left
    out, and others that neither by name nor by content are images. `complain` gets a sentence for
    each source that holds no image or ends in damage.
    """
    found = list[Input]()
    for source in sources:
        try:
            inputs = list[Input]()
            for one in _inputs_of(source):
                inputs.append(one)
                found.append(one)
            if not inputs:
                complain(f"{source} holds no images; expected files such as .jpg or .png in it")
        except (OSError, ValueError) as error:
            complain(describe(error))
    return found


def _inputs_of(source: str) -> Iterator[Input]:
    if source == STANDARD_INPUT:
        content = _read_standard_input()
        yield Input("standard input", lambda: content)
        return
    path = path_option(source)
    if path.is_dir():
        yield from _inputs_in_folder(path)
    elif path.name.endswith(_TAR_SUFFIXES):
        for image in walk_images(path):
            name = f"{path}:{image.member.name}"
            yield Input(name, partial(_read_member, path, image.member), image.label)
    else:
        yield Input(str(path), path.read_bytes)


def _read_standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("there is no image on standard input: send one through a pipe, or name it")
    return sys.stdin.buffer.read()


def _inputs_in_folder(folder: Path) -> Iterator[Input]:
    folders = list(walk(folder))
    others = [path for inside in folders for path in inside.others if not path.is_symlink()]
    for path in sorted(
        path
        for inside in folders
        for path in (*inside.files, *inside.others)
        if path.is_file() or path.is_symlink()  # a broken link is said to be one when it is read
    ):
        if _may_be_image(path):
            yield Input(str(path), path.read_bytes)
        else:
            others.append(path)
    if others:
        say(f"warning: {left_out(folder, [str(path) for path in others])}", stream=sys.stderr)


def _may_be_image(path: Path) -> bool:
    """Whether it is one, or cannot be read."""
    try:
        return is_image_file(path)
    except OSError:
        return True


def _read_member(path: Path, member: Member) -> bytes:
    with path.open("rb", buffering=0) as file:
        content = os.pread(file.fileno(), member.num_bytes, member.offset)
    if len(content) < member.num_bytes:
        raise ForeignTarError(f"{path} was cut while it was read")
    return content
