"""The compiled library of the C code in `c`, where it could be built, and how arrays go into it."""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import c_int, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

_INTERFACE = 5
"""Of the C code that belongs to this version of Python's."""

HOW_TO_BUILD = (
    "is not there, or was built of another version: install a C compiler and the headers of "
    "libjpeg-turbo (Debian: gcc libc6-dev libjpeg62-turbo-dev), and then this program again"
)
"""What is wrong where it is needed and cannot be used, and what to do; after "which"."""

MESSAGE_BYTES = 200
"""JMSG_LENGTH_MAX of libjpeg."""


def _load() -> ctypes.CDLL | None:
    """The library, unless it was built from another version of the source, or not at all."""
    found = importlib.util.find_spec("data_prep.shard_set._pixels")
    if found is None or found.origin is None:
        return None
    try:
        library = ctypes.CDLL(found.origin)
        if c_int.in_dll(library, "INTERFACE").value != _INTERFACE:
            return None
    except (OSError, ValueError):  # without its libjpeg, or older
        return None
    return library


_library = _load()


def is_compiled() -> bool:
    """Whether the library is there."""
    return _library is not None


def library() -> ctypes.CDLL:
    """The library, which must be there."""
    assert _library is not None
    return _library


def address(array: npt.NDArray[Any], dtype: type[np.generic], *shape: int) -> c_void_p:
    """The array for C, which relies on this type and shape, and on rows without gaps."""
    assert array.dtype == dtype, array.dtype
    assert array.shape == shape, array.shape
    assert array.flags.c_contiguous
    return c_void_p(array.ctypes.data)
