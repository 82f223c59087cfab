"""MLflow's run in an SQLite store, read back by MLflow's own client."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.follow.mlflow_run import MlflowRun
from pipeline.run.directory import RunDirectory
from tests.pipeline.follow.histories import (
    Numbers,
    bits,
    killed_and_resumed,
    make_run,
    numbers_of,
    row,
    story_of,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),  # MLflow uses that
]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making its tables takes a second."""
    store = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowRun(f"sqlite:///{store}")
    return store


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path)}"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path)


def runs_at(uri: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("alexnet")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def read(uri: str, run: Run) -> Numbers:
    client = MlflowClient(tracking_uri=uri)
    found = {
        tag: client.get_metric_history(run.info.run_id, tag) for tag in sorted(run.data.metrics)
    }
    return {
        tag: sorted((metric.step, metric.value) for metric in metrics)
        for tag, metrics in found.items()
    }


def test_the_client_finds_numbers_parameters_outcome_and_texts(uri: str, run: RunDirectory) -> None:
    rows = killed_and_resumed()
    MlflowRun(uri).show(story_of(run, rows))
    (found,) = runs_at(uri)
    assert bits(read(uri, found)) == bits(numbers_of(rows))
    saved = json.loads(run.config.read_bytes())
    assert found.data.params["model.name"] == "alexnet_cifar"
    assert found.data.params["manifest_sha256"] == saved["manifest_sha256"]
    assert found.data.tags["alarm/not_learning"] == "alarm: loss 6.9"
    assert found.data.tags["alexnet.run_dir"] == str(run.path)
    times = (found.info.status, found.info.start_time, found.info.end_time)
    assert times == ("KILLED", round(rows[0].time * 1000), round(rows[-1].time * 1000))
    (metric, *_) = MlflowClient(uri).get_metric_history(found.info.run_id, "train/loss")
    assert metric.timestamp == round(rows[1].time * 1000)


def test_a_run_that_grows_is_the_same_run_until_points_become_void(
    uri: str, run: RunDirectory
) -> None:
    """Then another one takes its place, which has none of them."""
    rows = [row(number, kind, number) for number, kind in enumerate(["start", *["train"] * 6])]
    follower, story = MlflowRun(uri), story_of(run, rows[:3])
    follower.show(story)
    (first,) = runs_at(uri)
    for event in rows[3:]:
        story.add(event)
    follower.show(story)
    (same,) = runs_at(uri)
    assert same.info.run_id == first.info.run_id
    assert len(read(uri, same)["train/loss"]) == 6
    rows += [row(7, "resume", 4), row(8, "train", 5, 0.25)]
    for event in rows[7:]:
        story.add(event)
    follower.show(story)
    (other,) = runs_at(uri)
    assert other.info.run_id != first.info.run_id
    assert other.info.status == "RUNNING"
    assert bits(read(uri, other)) == bits(numbers_of(rows))


def test_changed_parameters_make_another_run(uri: str, run: RunDirectory) -> None:
    rows = [row(number, kind, number) for number, kind in enumerate(["start", "train", "train"])]
    MlflowRun(uri).show(story_of(run, rows))
    settings = json.loads(run.config.read_bytes())
    settings["config"]["epochs"] = 20
    run.config.write_text(json.dumps(settings))
    MlflowRun(uri).show(story_of(run, rows))
    (found,) = runs_at(uri)
    assert found.data.params["epochs"] == "20"
    assert bits(read(uri, found)) == bits(numbers_of(rows))


class KilledError(Exception):
    """Stands for the end of the process."""


class Fragile:
    """A client that ends the follower before or after its change of that number."""

    def __init__(self, client: MlflowClient, lives: float) -> None:
        self._client, self._lives = client, lives

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not name.startswith(("create", "log", "set", "update", "delete")):
            return method

        def change(*arguments: Any, **named: Any) -> Any:
            self._lives -= 1
            if self._lives < 0:
                raise KilledError
            done = method(*arguments, **named)
            if self._lives == 0.5:
                raise KilledError
            return done

        return change


def test_a_follower_that_dies_at_any_change_is_continued_by_the_next(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it begins, and while one run takes the place of another; no other is touched."""
    monkeypatch.setattr("pipeline.follow.mlflow_run._METRICS", 100)
    rows = [row(number, kind, number) for number, kind in enumerate(["start", *["train"] * 12])]
    resumed = [*rows, row(13, "resume", 10), row(14, "train", 11, 0.25), row(15, "end", 11)]
    wanted = {}
    for before, part, num_changes in (([], rows, 3), (rows, resumed, 5)):
        for death in range(2 * num_changes):
            run = make_run(tmp_path / f"{len(part)}-{death}")
            if before:
                MlflowRun(uri).show(story_of(run, before))
            follower: Any = MlflowRun(uri)
            follower._client = Fragile(follower._client, death / 2)
            with pytest.raises(KilledError):
                follower.show(story_of(run, part))
            MlflowRun(uri).show(story_of(run, part))
            wanted[str(run.path)] = bits(numbers_of(part))
    found = [(run.data.tags["alexnet.run_dir"], bits(read(uri, run))) for run in runs_at(uri)]
    assert len(found) == len(wanted) == 16
    assert dict(found) == wanted


def test_stores_that_cannot_be_used_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("of another program")
    for uri, what in (
        ("nothing:/there", "nothing:/there"),
        (f"sqlite:///{tmp_path}/absent/mlflow.db", "No such file"),
        (f"sqlite:///{tmp_path}", "is no SQLite file"),
        (f"sqlite:///{tmp_path}/text", "is no SQLite file"),
    ):
        with pytest.raises(OSError, match=what):
            MlflowRun(uri)
