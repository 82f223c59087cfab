"""Deliberate bugs in the product, each found by a seed that finds nothing without it."""

from __future__ import annotations

import pytest

from tests.simulation.bugs import Bug
from tests.simulation.planted import BUGS, CACHE_BUGS, WARM_BUGS
from tests.simulation.simulate import simulate, simulate_cache, warm_world

_LEAST_BUGS = 20


def test_there_are_enough() -> None:
    names = [bug.name for bug in (*BUGS, *WARM_BUGS, *CACHE_BUGS)]
    assert len(set(names)) == len(names)
    assert len(BUGS) >= _LEAST_BUGS


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_found(bug: Bug) -> None:
    with bug.planted():
        found = simulate(bug.seed).fault
    assert found is not None
    assert simulate(bug.seed).fault is None


@pytest.mark.parametrize("bug", CACHE_BUGS, ids=lambda bug: bug.name)
def test_a_bug_of_the_cache_is_found(bug: Bug) -> None:
    with bug.planted():
        found = simulate_cache(bug.seed).fault
    assert found is not None
    assert simulate_cache(bug.seed).fault is None


@pytest.mark.slow
@pytest.mark.parametrize("bug", WARM_BUGS, ids=lambda bug: bug.name)
def test_a_bug_of_warm_restarts_is_found(bug: Bug) -> None:
    with bug.planted():
        found = simulate(bug.seed, warm_world).fault
    assert found is not None
    assert simulate(bug.seed, warm_world).fault is None
