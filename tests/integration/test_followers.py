"""Followers of a real run that is killed and resumed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipeline.run.directory import RunDirectory
from tests.integration.training import all_rows, finish, rows, stand_still, train, wait_for_step
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.follow.test_follow import assert_shown, follower


def test_a_follower_of_a_run_that_is_killed_and_resumed_shows_what_is_not_void(
    shards: Path, tmp_path: Path
) -> None:
    """One begins before the run and is killed with it, one ends with it, and one comes late."""
    run = RunDirectory(tmp_path / "run")
    first = follower(run, "--to", "tensorboard")
    with train(1, shards, run.path, before=partial(stand_still, 0, 15)) as job:
        wait_for_step(run.path, 14)  # two behind a save
        job.processes[0].kill()
        first.kill()
        first.communicate()
    with follower(run, "--to", "tensorboard") as second:
        finish(1, shards, run.path)
        assert second.wait(DEADLINE_SECONDS) == 0
    steps = [row["step"] for row in rows(run.path, "train")]
    assert steps == [*range(1, 25)]
    assert sum(row["kind"] == "train" for row in all_rows(run.path)) > len(steps), (
        "nothing was void"
    )
    assert_shown(run, "tensorboard")
    late = tmp_path / "late"
    follower(run, "--to", "tensorboard", "--output", str(late)).communicate()
    contents = [
        sorted((path.name, path.read_bytes()) for path in folder.iterdir())
        for folder in (late, run.path / "tensorboard")
    ]
    assert contents[0] == contents[1]
