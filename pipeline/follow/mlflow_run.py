"""A run of MLflow that has each point once, whenever its follower was killed.

MLflow can neither change nor delete what was logged. So where points become void, or parameters
change, a new run takes the place of the old one, which is deleted once the new one is complete.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_prep.shard_set.files import TEMPORARY_PREFIX, as_text, remove_leftovers
from data_prep.shard_set.locks import locked
from pipeline.follow.story import Outcome, Story, are_same

_EXPERIMENT = "alexnet"

_IDENTITY = "alexnet.run"
"""The tag by which a follower finds what others have made of the same run."""

_METRICS = 800
_OTHERS = 100
"""What one call may log: 100 parameters, 100 tags, and 1,000 things in all."""

_MAX_TEXT = 5000
"""Characters of a parameter or tag."""

SQLITE = "sqlite:///"


@dataclass
class _Logged:
    """What a run of MLflow has."""

    id: str
    metrics: dict[tuple[str, int], float]
    parameters: dict[str, str]
    tags: dict[str, str]
    status: str

    def fits(self, story: Story) -> bool:
        """Whether the story needs only additions."""
        numbers, parameters = story.numbers(), _parameters(story)
        return all(
            key in numbers and are_same(numbers[key].value, value)
            for key, value in self.metrics.items()
        ) and all(parameters.get(key) == value for key, value in self.parameters.items())


class MlflowRun:
    """The run in the experiment `alexnet` of a tracking server or store.

    Everything raises `OSError` if that does not answer, or does not take what it should.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._run: _Logged | None = None
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with _errors(uri):
            _make_store(uri)
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            self._experiment = _open_experiment(self._client)

    def __str__(self) -> str:
        return f"the experiment {_EXPERIMENT} at {self._uri}"

    def show(self, story: Story) -> None:
        with _errors(self._uri):
            others = self._find(story) if self._run is None else [self._run]
            fitting = [run for run in others if run.fits(story)]
            run = max(fitting, key=lambda run: len(run.metrics), default=None)
            self._run = run or self._create(story)
            self._log(self._run, story)
            for other in others:
                if other is not run:
                    self._client.delete_run(other.id)

    def _find(self, story: Story) -> list[_Logged]:
        """All that are of the story's run: two if a follower was killed as it replaced one."""
        filter_string = f"tags.`{_IDENTITY}` = '{story.identity()}'"
        return [
            self._read(run) for run in self._client.search_runs([self._experiment], filter_string)
        ]

    def _read(self, run: Run) -> _Logged:
        metrics = {
            (name, metric.step): metric.value
            for name in run.data.metrics
            for metric in self._client.get_metric_history(run.info.run_id, name)
        }
        return _Logged(run.info.run_id, metrics, run.data.params, run.data.tags, run.info.status)

    def _create(self, story: Story) -> _Logged:
        run_dir = as_text(str(story.run.path.resolve()))
        tags = {_IDENTITY: story.identity(), "alexnet.run_dir": run_dir}
        made = self._client.create_run(
            self._experiment, round(story.began * 1000), tags, run_name=story.name
        )
        return self._read(made)

    def _log(self, run: _Logged, story: Story) -> None:
        """Log what the run lacks."""
        metrics = [point for key, point in story.numbers().items() if key not in run.metrics]
        parameters = _missing(_parameters(story), run.parameters)
        tags = _missing(story.texts(), run.tags)
        num_others = max(len(parameters), len(tags))
        for number in range(max(-(-len(metrics) // _METRICS), -(-num_others // _OTHERS))):
            some = slice(number * _METRICS, (number + 1) * _METRICS)
            others = slice(number * _OTHERS, (number + 1) * _OTHERS)
            self._client.log_batch(
                run.id,
                [
                    Metric(p.tag, float(p.value), round(p.time * 1000), p.step)
                    for p in metrics[some]
                ],
                [Param(*item) for item in parameters[others]],
                [RunTag(*item) for item in tags[others]],
                synchronous=True,
            )
        run.metrics.update({(p.tag, p.step): float(p.value) for p in metrics})
        run.parameters.update(parameters)
        run.tags.update(tags)
        status = _status(story.outcome)
        if status != run.status:
            if story.ended is None:
                self._client.update_run(run.id, status)
            else:
                self._client.set_terminated(run.id, status, round(story.ended * 1000))
            run.status = status


def _missing(wanted: Mapping[str, str], present: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(key, value) for key, value in wanted.items() if present.get(key) != value]


def _parameters(story: Story) -> dict[str, str]:
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in story.parameters.items()
    }
    return {name: text[:_MAX_TEXT] for name, text in texts.items()}


def _status(outcome: Outcome) -> str:
    match outcome:
        case "running":
            return "RUNNING"
        case "completed":
            return "FINISHED"
        case "stopped":
            return "KILLED"
        case "failed":
            return "FAILED"
        case unknown:
            assert_never(unknown)


def _make_store(uri: str) -> None:
    """Make the tables of an SQLite file that is not there: a kill would leave half of them."""
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE):
        return
    if as_text(uri) != uri or {"?", "%"} & {*uri}:  # MLflow would open, or make, another file
        raise ValueError(
            f"{uri} has ? or % in it, or bytes that are no text: MLflow finds no such SQLite file; "
            "give another --tracking-uri"
        )
    if path.exists():  # MLflow would try for minutes
        with contextlib.suppress(IsADirectoryError), path.open("rb") as file:
            if file.read(6) in (b"", b"SQLite"):
                return
        raise FileExistsError(f"--tracking-uri {uri}: {path} is no SQLite file: give another one")
    with locked(path.with_name(f".{path.name}.lock"), wait_seconds=60.0):
        if path.exists():  # now, by another follower
            return
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-0")
        remove_leftovers(path.parent, [path.name])
        store = f"{SQLITE}{temporary}"
        _open_experiment(MlflowClient(tracking_uri=store, registry_uri=store))
        temporary.rename(path)


def _open_experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name(_EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(_EXPERIMENT))
    except MlflowException:  # by another follower, in the meantime
        found = client.get_experiment_by_name(_EXPERIMENT)
        if found is None:
            raise
        return str(found.experiment_id)


@contextlib.contextmanager
def _errors(uri: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise OSError(f"MLflow at {uri}: {error.message}") from None
