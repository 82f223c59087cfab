"""Which ranks' memory all go on from."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World
from pipeline.run.checkpoint import path_of
from pipeline.run.directory import RunDirectory
from pipeline.train.progress import Progress
from pipeline.train.survival import Held, Memory, Moment, Stage, Survivors

MOMENTS = st.none() | st.builds(Moment, st.integers(7, 9), st.sampled_from(Stage))


@given(st.lists(MOMENTS, min_size=1, max_size=6))
def test_the_latest_moment_of_any_rank_is_taken(moments: list[Moment | None]) -> None:
    found = Survivors.choose([None] * len(moments), moments)
    held = [moment for moment in moments if moment is not None]
    if not held:
        assert found is None
        return
    assert found is not None
    assert found.moment == max(held)
    kept = moments[found.rank_of[None]]
    assert kept is not None
    assert kept.step == found.moment.step


@given(st.lists(st.tuples(MOMENTS, MOMENTS), min_size=1, max_size=4))
def test_every_column_comes_from_the_same_step(replicas: list[tuple[Moment | None, ...]]) -> None:
    moments = [moment for replica in replicas for moment in replica]
    columns = [0, 1] * len(replicas)
    found = Survivors.choose(columns, moments)
    steps = [
        {moment.step for moment in moments[column::2] if moment is not None} for column in (0, 1)
    ]
    common = steps[0] & steps[1]
    if not common:
        assert found is None
        return
    assert found is not None
    assert found.moment.step == max(common)
    assert found.moment == max(m for m in moments if m is not None and m.step == max(common))
    assert found.rank_of.keys() == {0, 1}
    for column, rank in found.rank_of.items():
        kept = moments[rank]
        assert columns[rank] == column
        assert kept is not None
        assert kept.step == found.moment.step


@pytest.mark.parametrize("is_written", [True, False])
def test_a_best_checkpoint_that_was_lost_with_rank_0_is_made_again(
    is_written: bool, tmp_path: Path
) -> None:
    """From a checkpoint before it: what ranks have in memory is past it."""
    memory, moment = Memory(), Moment(9, Stage.DONE)
    memory.held = Held(
        moment=moment, progress=Progress(step=9, marked=(8, 0.5)), best_top1=None, state=dict
    )
    run = RunDirectory(tmp_path)
    if is_written:
        path_of(run.checkpoints, 8).mkdir(parents=True)
    world = mock.Mock(spec=World, generation=1)
    world.all_gather_object.side_effect = lambda value: [value]
    world.broadcast_object.side_effect = lambda value: value
    found = Survivors.find(memory, run, world, mock.Mock(spec=Mesh, column=None))
    assert (found is not None) == is_written
    assert found is None or (found.moment, found.rank_of) == (moment, {None: 0})
