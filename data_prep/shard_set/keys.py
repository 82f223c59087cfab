"""Keys of samples: what they may be, and how they are made of file names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
"""What a whole key matches; a dot would end the key and start the member's field name."""

MAX_KEY_LENGTH = 96
"""Leaves room for the suffix in the 100 bytes of a ustar member name."""

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_STEM_LENGTH = 72
"""Leaves room for the number in a key."""


def make_keys(names: Sequence[str]) -> list[str]:
    """A unique key for each file name (or relative path), without its suffix.

    Every run of characters that no key may have becomes `_`. Names that then are equal are
    numbered in their order: `a.b.jpg`, `a b.jpg`, `a_b.png` become `a_b-2`, `a_b`, `a_b-3`.
    The same names give the same keys in any order.
    """
    keys = [""] * len(names)
    taken: set[str] = set()
    last_number: dict[str, int] = {}
    for row in sorted(range(len(names)), key=names.__getitem__):
        name = str(PurePosixPath(names[row]).with_suffix(""))
        stem = key = _FORBIDDEN.sub("_", name)[:_MAX_STEM_LENGTH]
        while key in taken:
            last_number[stem] = last_number.get(stem, 1) + 1
            key = f"{stem}-{last_number[stem]}"
        taken.add(key)
        keys[row] = key
    return keys
