"""The copy of the project that all additions are in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from tests.additions.additions import ADDITIONS
from tests.additions.scratch import Scratch


@dataclass(frozen=True, slots=True)
class Added:
    """A copy with all additions."""

    scratch: Scratch
    files: Mapping[str, set[str]]
    """What each addition has changed or made."""


@pytest.fixture(scope="session")
def added(tmp_path_factory: pytest.TempPathFactory) -> Added:
    scratch, files = Scratch(tmp_path_factory.mktemp("scratch")), {}
    for addition, add in ADDITIONS.items():
        before = scratch.product()
        add(scratch)
        after = scratch.product()
        files[addition] = {name for name in after if after[name] != before.get(name)}
    return Added(scratch, files)


@pytest.fixture(scope="session")
def scratch(added: Added) -> Scratch:
    return added.scratch
