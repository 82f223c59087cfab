"""Schedules: a seed replays, a file does, and one that replays nothing is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.under_fire.schedule import KINDS, NUM_RANKS, draw, read, write


@given(seed=st.integers(0, 1000), slots=st.integers(1, 40), slot_seconds=st.floats(1, 100))
def test_a_seed_replays_and_each_slot_has_one_fault(
    seed: int, slots: int, slot_seconds: float
) -> None:
    total = slots * slot_seconds * 1.0001
    found = draw(seed, KINDS, total, slot_seconds)
    assert found == draw(seed, KINDS, total, slot_seconds)
    assert len(found) == slots
    for slot, fault in enumerate(found):
        assert 0.24 < fault.seconds / slot_seconds - slot < 0.76
        assert fault.rank in range(NUM_RANKS)
    counts = Counter(fault.kind for fault in found)
    assert max(counts.values()) - min(counts[kind] for kind in KINDS) <= 1


def test_seeds_differ() -> None:
    assert len({tuple(draw(seed, KINDS, 720, 60)) for seed in range(20)}) == 20


def test_a_run_that_has_no_time_for_a_fault_is_refused() -> None:
    with pytest.raises(
        ValueError, match="--seconds-between is 60; expected at most the run's 30 s"
    ):
        draw(0, KINDS, 30, 60)


@given(seed=st.integers(0, 100))
def test_a_schedule_that_was_written_is_read(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, faults = tmp_path_factory.mktemp("schedule") / "faults.json", draw(seed, KINDS, 720, 60)
    write(path, faults)
    assert read(path, KINDS, 720) == faults


GOOD = {"kind": "kill -9", "rank": 0, "seconds": 3.0}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[]", 'expected {"faults": […]}'),
        ({"faults": []}, "it has no fault"),
        ({"faults": [GOOD | {"kind": "earthquake"}]}, "kind"),
        ({"faults": [GOOD | {"kind": "partition"}]}, "fault 1 is 'partition', which cannot be"),
        ({"faults": [GOOD | {"rank": 4}]}, "fault 1 is of rank 4, expected 0 to 3"),
        ({"faults": [GOOD | {"rank": "all"}]}, "rank"),
        ({"faults": [GOOD | {"seconds": 60}]}, "fault 1 comes at 60 s"),
        ({"faults": [GOOD | {"seconds": -1}]}, "fault 1 comes at -1 s"),
        ({"faults": [GOOD, GOOD | {"seconds": 2}]}, "fault 2 comes at 2 s"),
        ({"faults": [{"kind": "kill -9"}]}, "expected an object of kind, rank and seconds"),
    ],
)
def test_a_schedule_that_replays_nothing_is_refused(
    content: object, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "faults.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    kinds = [kind for kind in KINDS if kind != "partition"]
    with pytest.raises(ValueError, match="cannot be replayed: ") as error:
        read(path, kinds, 60)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
