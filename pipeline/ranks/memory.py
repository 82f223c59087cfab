"""What the C library does with memory that tensors on a CPU no longer need."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of mallopt(3), in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it allocates next, as a GPU's allocator does.

    glibc otherwise returns large blocks to the system at once, and each step of training has its
    activations and gradients in pages that the system must find and clear anew: more than 100,000
    page faults a step of the 2012 network. Other C libraries, which lack the call, stay as they
    are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
