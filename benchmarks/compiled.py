"""Single functions of the code in `data_prep/shard_set/c`, to be measured alone."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_size_t,
    c_void_p,
    create_string_buffer,
)
from importlib.util import find_spec

from benchmarks.rivals.crops import Pixels

_MESSAGE_BYTES = 200


class Window(Structure):
    """As in `data_prep/shard_set/c/pixels.h`."""

    _fields_ = [(name, c_int) for name in ("top", "left", "height", "width")]

    @classmethod
    def of_box(cls, box: tuple[int, int, int, int]) -> Window:
        """Of left, top, right and bottom."""
        left, top, right, bottom = box
        return cls(top, left, bottom - top, right - left)


def load() -> CDLL:
    """The library; raises `ImportError` if it was not built."""
    spec = find_spec("data_prep.shard_set._pixels")
    if spec is None or spec.origin is None:
        raise ImportError(
            "data_prep/shard_set/c is not compiled: install gcc and libjpeg's headers"
        )
    return CDLL(spec.origin)


Decode = Callable[[bytes, Window], None]


def libjpeg_window(out: Pixels) -> Decode:
    """Decode a window by libjpeg-turbo into `out`, which has room for it; raises `ValueError`."""
    function = load().decode_window
    function.argtypes = [c_char_p, c_size_t, POINTER(Window), c_void_p, c_char_p]
    function.restype = c_char_p
    target, message = out.ctypes, create_string_buffer(_MESSAGE_BYTES)

    def decode(content: bytes, window: Window) -> None:
        problem = function(content, len(content), window, target, message)
        if problem is not None:
            raise ValueError(problem.decode(errors="replace"))

    return decode
