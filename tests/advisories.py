"""Known vulnerabilities of the packages in constraints.txt, as a list that needs no network.

    python -m tests.advisories CHECKOUT     # writes tests/advisories.json anew

CHECKOUT is one of the Python Packaging Advisory Database, github.com/pypa/advisory-database
(CC-BY 4.0): for each package its advisories, and for each of these the versions that have it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".json")

Ranges = list[list[str | None]]
"""Of versions: from the first on, and before the second; None: no version mends it."""


def pinned() -> list[tuple[str, Version]]:
    """The packages of constraints.txt; of some there are several versions."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [
        (canonicalize_name(each.name), Version(mark.version))
        for each in found
        for mark in each.specifier
    ]


def is_in(version: Version, ranges: Ranges) -> bool:
    return any(
        Version(begin or "0") <= version and (end is None or version < Version(end))
        for begin, end in ranges
    )


def known() -> dict[str, dict[str, Ranges]]:
    """By package and advisory."""
    packages: dict[str, dict[str, Ranges]] = json.loads(LIST.read_text())["packages"]
    return packages


def _ranges(advisory: dict[str, Any], package: str) -> Ranges:
    """Raises `ValueError` if the advisory says it in a way that this module does not know."""
    found: Ranges = []
    for affected in advisory["affected"]:
        if canonicalize_name(affected["package"]["name"]) != package:
            continue
        ranges = [each for each in affected["ranges"] if each["type"] == "ECOSYSTEM"]
        for event in (event for each in ranges for event in each["events"]):
            match event:
                case {"introduced": begin}:
                    found.append([str(begin), None])
                case {"fixed": end}:
                    found[-1][1] = str(end)
                case _:
                    raise ValueError(f"{advisory['id']}: unknown event {event}")
        if not ranges:
            raise ValueError(f"{advisory['id']} has no range of versions")
    return found


def _advisories(checkout: Path, package: str) -> Iterator[tuple[str, Ranges]]:
    for path in sorted((checkout / "vulns" / package).glob("*.yaml")):
        advisory = yaml.load(path.read_text(), yaml.CSafeLoader)
        if "withdrawn" not in advisory and (ranges := _ranges(advisory, package)):
            yield advisory["id"], ranges


def main() -> None:
    checkout = Path(sys.argv[1])
    git = ("git", "-C", checkout, "log", "-1", "--format=%H %cs")
    revision, date = subprocess.check_output(git, text=True).split()
    packages = {name: dict(_advisories(checkout, name)) for name in sorted({*dict(pinned())})}
    lines = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(id)}: {json.dumps(found)}" for id, found in each.items())
        + "\n  }"
        for name, each in packages.items()
        if each
    ]
    head = {"source": "github.com/pypa/advisory-database, CC-BY 4.0"}
    head |= {"revision": revision, "date": date}
    text = json.dumps(head, indent=1)[:-2] + ',\n "packages": {\n' + ",\n".join(lines) + "\n }\n}\n"
    json.loads(text)
    LIST.write_text(text)


if __name__ == "__main__":
    main()
