"""A TCP port as a word of a command line."""

from __future__ import annotations

import argparse

_HIGHEST = 65535


def port_number(text: str, *, lowest: int = 0) -> int:
    """For `argparse`: a port from `lowest` on; 0 stands for any that is free."""
    if not text.isdecimal() or not lowest <= int(text) <= _HIGHEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: expected {lowest} to {_HIGHEST}")
    return int(text)
