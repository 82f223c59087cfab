"""Where a rank is: what its time counts under, and who waits for whom."""

from __future__ import annotations

from itertools import product

from pipeline.run.phase import PHASE_LABELS, Phase


def test_every_label_has_a_phase_and_a_phase_outside_of_steps_has_none() -> None:
    assert {phase.label for phase in Phase} == {*PHASE_LABELS, None}
    outside = {phase for phase in Phase if phase.label is None}
    assert outside == {Phase.EVALUATING, Phase.GATHERING, Phase.SAVING}


def test_a_rank_is_blamed_where_it_waits_for_nobody() -> None:
    """However the job is laid out: the others are to blame only where they can be."""
    exchanging = {Phase.COPYING, Phase.COMPUTING, Phase.EVALUATING}
    always = {Phase.AVERAGING, Phase.UPDATING, Phase.COUNTING, Phase.LOGGING, Phase.AGREEING}
    always |= {Phase.GATHERING}
    for is_main, is_split, is_resident in product((False, True), repeat=3):
        found = {
            phase
            for phase in Phase
            if phase.may_wait(is_main=is_main, is_split=is_split, is_resident=is_resident)
        }
        expected = always | (exchanging if is_split else set())
        expected |= {Phase.READING} if is_resident else set()
        assert found == expected | (set() if is_main else {Phase.SAVING})
