"""Reads what valgrind's callgrind writes."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping

_FUNCTION = re.compile(r"(c?)fn=\((\d+)\)(?: (.*))?")


def parse_profile(profile: str) -> Mapping[str, int]:
    """Instructions in each function, without those in the functions that it calls.

    See "Callgrind Format Specification" in valgrind's manual.
    """
    names: dict[str, str] = {}
    counts: collections.Counter[str] = collections.Counter()
    function, is_call = "", False
    for line in profile.splitlines():
        if match := _FUNCTION.match(line):
            callee, number, name = match.groups()
            name = names.setdefault(number, name)  # it is written once
            function = function if callee else name
        elif line.startswith("calls="):
            is_call = True
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            if not is_call:  # behind `calls` is the cost of all that is called
                counts[function] += sum(map(int, line.split()[1:2]))  # none is 0
            is_call = False
    return counts
