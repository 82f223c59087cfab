"""Recording, the exposition, and its publication on good and bad disks."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from data_prep.shard_set.families import exposition
from pipeline.metrics import publisher as publisher_module
from pipeline.metrics.declared import CHECKPOINTS, JOB_METRICS, METRICS
from pipeline.metrics.gpu import GpuCollector
from pipeline.metrics.job import JobMetrics
from pipeline.metrics.node import NodeCollector
from pipeline.metrics.pages import Identity
from pipeline.metrics.publisher import Publisher
from pipeline.metrics.rank import RankMetrics
from pipeline.metrics.rank_file import read_rank_file
from pipeline.metrics.tables import ALL_METRICS, with_tables
from pipeline.metrics.tables import main as write_tables
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import append
from pipeline.run.events import (
    CheckpointEvent,
    CheckpointReason,
    SlowPart,
    SubmitEvent,
    TrainEvent,
)
from pipeline.run.phase import PHASE_LABELS, Label, Phase
from tests.machine import DEADLINE_SECONDS, small_disk
from tests.pipeline.fake_run import checkpoint_fields, eval_fields, event, train_fields
from tests.pipeline.metrics.test_gpu import UUID, nvml
from tests.pipeline.monitoring import REPOSITORY, assert_clean_exposition, parse, wait_for
from tests.pipeline.rank_process import BUILD, RUN, STARTED

RANK = {"rank": "3", "local_rank": "1"}


def fill(registry: CollectorRegistry, rank: int = 0) -> tuple[RankMetrics, JobMetrics]:
    """A registry in which everything has a value."""
    metrics, job = RankMetrics(rank, rank, registry), JobMetrics(registry)
    metrics.record_step(64, dict.fromkeys(PHASE_LABELS, 0.01))
    metrics.record_skip()
    record_loaded(metrics, "tar")
    job.started(STARTED, 10, BUILD, RUN)
    job.trained(trained(loss=2.0, grad_norm=1.0), 1.0)
    job.evaluated(event("eval", 10, **eval_fields(5, 9, 10, 10)))
    return metrics, job


def trained(loss: float, grad_norm: float | None = None) -> TrainEvent:
    found: TrainEvent = event("train", 10, **train_fields(10))
    return dataclasses.replace(found, loss=loss, grad_norm=grad_norm)


def saved(reason: CheckpointReason, step: int) -> CheckpointEvent:
    found: CheckpointEvent = event("checkpoint", step, **checkpoint_fields(reason))
    return found


def record_loaded(metrics: RankMetrics, source: str) -> None:
    metrics.record_loaded(
        source,
        num_samples=64,
        num_bytes=4096,
        read_seconds=0.1,
        decode_seconds=0.2,
        num_replaced=1,
    )


def test_a_title_that_is_no_text_is_published() -> None:
    registry = CollectorRegistry()
    run = RUN | {"dataset": os.fsdecode(b"caf\xe9")}
    JobMetrics(registry).started(STARTED, 10, BUILD, run)
    assert 'dataset="caf\ufffd"' in exposition(registry).decode()


def test_a_step_is_counted() -> None:
    registry = CollectorRegistry()
    metrics = RankMetrics(3, 1, registry)
    metrics.record_step(64, {"data_wait": 0.25, "optimizer": 0.5})
    metrics.record_step(32, {"data_wait": 0.25, "other": -1e-9})
    metrics.record_skip()
    value = registry.get_sample_value
    assert value("alexnet_train_samples_total", RANK) == 96
    assert value("alexnet_train_steps_total", RANK) == 2
    assert value("alexnet_train_steps_skipped_total", RANK) == 1
    assert value("alexnet_step_seconds_total", {**RANK, "phase": "data_wait"}) == 0.5
    assert value("alexnet_step_seconds_total", {**RANK, "phase": "optimizer"}) == 0.5
    assert value("alexnet_step_seconds_total", {**RANK, "phase": "other"}) == 0


@given(
    steps=st.lists(
        st.fixed_dictionaries(dict.fromkeys(PHASE_LABELS, st.floats(0, 100))), max_size=5
    )
)
def test_phases_sum_to_the_duration_of_the_steps(steps: list[dict[Label, float]]) -> None:
    registry = CollectorRegistry()
    metrics = RankMetrics(0, 0, registry)
    for phase_seconds in steps:
        metrics.record_step(1, phase_seconds)
    samples = parse(exposition(registry))
    phases = sum(v for (name, _), v in samples.items() if name == "alexnet_step_seconds_total")
    assert phases == pytest.approx(samples["alexnet_step_duration_seconds_sum", frozenset()])
    assert samples["alexnet_step_duration_seconds_count", frozenset()] == len(steps)


def test_a_rank_says_what_it_is_doing_when_it_publishes() -> None:
    registry = CollectorRegistry()
    metrics = RankMetrics(3, 1, registry)

    def shown() -> set[str]:
        metrics.show_phase()
        values = {
            phase.name: registry.get_sample_value(
                "alexnet_rank_phase", RANK | {"phase": phase.name.lower()}
            )
            for phase in Phase
        }
        assert set(values.values()) <= {0.0, 1.0}
        return {name for name, value in values.items() if value}

    assert shown() == set()
    for phase in (Phase.READING, Phase.SAVING):
        metrics.enter(phase)
        assert shown() == {phase.name}


def test_the_publisher_asks_before_each_publication(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    metrics = RankMetrics(3, 1, registry)
    publisher = Publisher(
        tmp_path,
        registry,
        rank=3,
        local_rank=1,
        interval_seconds=3600,
        refresh=metrics.show_phase,
    )
    metrics.enter(Phase.EVALUATING)
    publisher.close()
    line = 'alexnet_rank_phase{local_rank="1",phase="evaluating",rank="3"} 1.0'
    assert line in (tmp_path / "rank-00003.prom").read_text()


def test_a_straggler_is_one_in_one_phase_until_it_is_none() -> None:
    registry = CollectorRegistry()
    metrics = RankMetrics(3, 1, registry)
    phases: list[Label | None] = ["data_wait", "h2d", None]
    for now in phases:
        metrics.record_straggler(now)
        for phase in PHASE_LABELS:
            value = registry.get_sample_value("alexnet_straggler", RANK | {"phase": phase})
            assert value == (phase == now)


def test_losses_that_are_not_finite_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = RankMetrics(3, 1, registry)
    for loss in (1.0, math.nan, math.inf, -math.inf, 2.0):
        metrics.record_loss(loss)
    assert registry.get_sample_value("alexnet_loss_not_finite_total", RANK) == 3


def test_what_holds_up_the_job_is_one_thing() -> None:
    registry = CollectorRegistry()
    job = JobMetrics(registry)
    slow: list[SlowPart | None] = ["loader", "unattributed", "rank", None]
    for now in slow:
        job.record_delay(now)
        assert registry.get_sample_value("alexnet_delay_wanders") == (now == "loader")
        value = registry.get_sample_value("alexnet_delay_unattributed")
        assert value == (now == "unattributed")


def test_only_rank_0_has_the_histogram_without_a_rank() -> None:
    registry = CollectorRegistry()
    RankMetrics(1, 1, registry)
    assert b"step_duration" not in exposition(registry)


def test_counters_begin_at_0_and_measurements_are_absent() -> None:
    registry = CollectorRegistry()
    RankMetrics(3, 1, registry)
    JobMetrics(registry)
    value = registry.get_sample_value
    assert {value("alexnet_step_seconds_total", {**RANK, "phase": p}) for p in PHASE_LABELS} == {0}
    kinds = CHECKPOINTS.labels["kind"] or ()
    assert {value("alexnet_checkpoints_total", {"kind": kind}) for kind in kinds} == {0}
    names = {name for name, _ in parse(exposition(registry))}
    assert "alexnet_resumes_total" in names
    assert not names & {"alexnet_train_loss", "alexnet_eval_loss", "alexnet_eval_accuracy_ratio"}
    assert "alexnet_last_step_timestamp_seconds" not in names, "a run that starts is no stalled one"


def test_unknown_labels_are_refused() -> None:
    registry = CollectorRegistry()
    metrics, job = RankMetrics(0, 0, registry), JobMetrics(registry)
    with pytest.raises(KeyError):
        metrics.record_step(1, {"lunch": 1.0})  # type: ignore[dict-item]
    with pytest.raises(KeyError):
        record_loaded(metrics, "hearsay")
    with pytest.raises(KeyError):
        job.checkpoint_failed("weekly", 0.0)  # type: ignore[arg-type]


def test_loss_keeps_its_last_finite_value() -> None:
    registry = CollectorRegistry()
    job = JobMetrics(registry)
    for loss in (2.5, math.nan, math.inf):
        job.trained(trained(loss=loss))
    assert registry.get_sample_value("alexnet_train_loss") == 2.5
    assert b"alexnet_grad_scale" not in exposition(registry)


def test_the_best_accuracy_survives_worse_ones_and_a_resumption() -> None:
    registry = CollectorRegistry()
    job = JobMetrics(registry)
    job.resumed(3, step=5, history=[], best_top1=0.6)
    top1 = {"split": "val", "k": "1"}
    value = registry.get_sample_value
    for accuracy, best in ((0.5, 0.6), (0.7, 0.7), (0.6, 0.7)):
        job.evaluated(event("eval", 10, **eval_fields(1, 10, 10, 10) | {"top1": accuracy}))
        assert value("alexnet_eval_accuracy_ratio", top1) == accuracy
        assert value("alexnet_best_eval_accuracy_ratio", top1) == best
    assert value("alexnet_resumes_total") == 3


def test_a_quantile_of_step_times_is_right_to_19_percent() -> None:
    registry = CollectorRegistry()
    RankMetrics(0, 0, registry).record_step(1, {"other": 0.307})
    buckets = sorted(
        float(dict(labels)["le"])
        for (name, labels), count in parse(exposition(registry)).items()
        if name == "alexnet_step_duration_seconds_bucket" and float(dict(labels)["le"]) > 0.002
    )
    ratios = [high / low for low, high in itertools.pairwise(buckets[:-1])]
    assert len(ratios) > 50
    assert max(ratios) < 1.2
    assert buckets[-2] > 30


def test_checkpoints_and_the_end() -> None:
    registry = CollectorRegistry()
    job = JobMetrics(registry)
    job.started(dataclasses.replace(STARTED, step=40, epoch=0.4), 10, BUILD, RUN)
    job.checkpointed(saved("best", step=50), 0.25)
    job.checkpoint_failed("best", 1.5)
    job.stop_requested()
    value = registry.get_sample_value
    assert value("alexnet_global_step") == 40
    assert value("alexnet_checkpoints_total", {"kind": "best"}) == 2
    assert value("alexnet_checkpoint_failures_total", {"kind": "best"}) == 1
    assert value("alexnet_checkpoint_wait_seconds_total") == 1.75
    assert value("alexnet_checkpoint_last_step") == 50
    assert value("alexnet_preempt_signals_total") == 1
    job.ended()
    end, start = (
        value("alexnet_run_end_timestamp_seconds"),
        value("alexnet_run_start_timestamp_seconds"),
    )
    assert end is not None
    assert start is not None
    assert value("alexnet_run_duration_seconds") == pytest.approx(end - start)


def test_the_number_of_series_is_bounded_and_constant() -> None:
    registry = CollectorRegistry()
    metrics, job = fill(registry)
    before = parse(exposition(registry)).keys()
    for step in range(500):
        metrics.record_step(64, dict.fromkeys(PHASE_LABELS, step / 1000))
        if step % 2 == 0:
            metrics.record_skip()
        job.count_step(step, step / 5)
        job.trained(trained(loss=1 / (step + 1)))
        job.checkpointed(saved("periodic", step=step), 0.1)
    assert parse(exposition(registry)).keys() == before
    of_job = {name for metric in JOB_METRICS for name in metric.series_names}
    assert len([name for name, _ in before if name in of_job]) < 75
    assert len([name for name, _ in before if name not in of_job]) < 150


def test_64_ranks_of_a_node_have_fewer_than_150_series_each(tmp_path: Path) -> None:
    """With everything that a rank may publish, a GPU's too; rank 0 has the job's beside its own."""
    run, library = RunDirectory(tmp_path), nvml(tmp_path)
    registries = [CollectorRegistry() for _ in range(64)]
    fill(registries[0])
    ranks = [RankMetrics(number, number, registries[number]) for number in range(1, 64)]
    for number, registry in enumerate(registries):
        registry.register(GpuCollector(UUID, rank=number, local_rank=number, library=library))
    publishers = [
        Publisher(run.metrics, registry, rank=number, local_rank=number, interval_seconds=3600)
        for number, registry in enumerate(registries)
    ]
    node = CollectorRegistry()
    node.register(NodeCollector(run, os.uname().nodename))
    wait_for(lambda: len(list(run.metrics.glob("rank-*.prom"))) == 64, "all ranks")
    for metrics in ranks:  # a gauge of something measured appears with its first value
        metrics.record_step(64, dict.fromkeys(PHASE_LABELS, 0.01))
    for publisher in publishers:
        publisher.close()
    text = exposition(node)
    assert_clean_exposition(text)
    series = [(name, dict(labels).get("rank")) for name, labels in parse(text)]
    histogram = [name for name, _ in series if name.startswith("alexnet_step_duration")]
    by_rank = Counter(rank for _, rank in series)
    of_node = by_rank.pop(None) - len(histogram)
    assert len(by_rank) == 64
    assert len({*by_rank.values()}) == 1, "all have the same"
    assert max(by_rank.values()) + len(histogram) < 150
    assert of_node < 80, "those of the job and of the exporter"


def test_promtool_finds_nothing(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    fill(registry)
    Publisher(tmp_path, registry, rank=0, local_rank=0, interval_seconds=2).close()
    content = (tmp_path / "rank-00000.prom").read_bytes()
    assert_clean_exposition(content)
    assert b"_created" not in content


def test_what_is_published_is_what_is_declared(tmp_path: Path) -> None:
    """Names, types, labels, and no value of a label but those that are declared."""
    registry = CollectorRegistry()
    fill(registry)
    registry.register(GpuCollector(UUID, rank=0, local_rank=0, library=nvml(tmp_path)))
    run, host = RunDirectory(tmp_path), os.uname().nodename
    Publisher(run.metrics, registry, rank=0, local_rank=0, interval_seconds=2).close()
    append(run.events, SubmitEvent(step=0, epoch=0, to="local", job=None))
    identity = Identity(run="run", run_dir=str(tmp_path), node="node")
    published: dict[str, tuple[str, str]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for source in (registry, NodeCollector(run, host), identity):
        for family in source.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            published[name] = (family.type, family.documentation)
            for sample in family.samples:
                for label, value in sample.labels.items():
                    values.setdefault((name, label), set()).add(value)
    assert published == {each.name: (each.prometheus_kind, each.help) for each in METRICS}
    known = {
        (metric.name, label): None if of is None else {*of}
        for metric in METRICS
        for label, of in metric.labels.items()
    }
    found = {key: of for key, of in values.items() if key[1] != "le"}
    assert found.keys() == known.keys()
    assert all(known[key] in (None, of) for key, of in found.items())


def test_names_follow_the_conventions() -> None:
    for metric in ALL_METRICS:
        assert metric.name.startswith("alexnet_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.endswith("_info") == (metric.kind == "info")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert metric.help
        assert metric.use
    assert len({metric.name for metric in ALL_METRICS}) == len(ALL_METRICS)
    units = {metric.name: metric.unit for metric in METRICS}
    assert units["alexnet_loader_bytes_read_total"] == "bytes"
    assert units["alexnet_last_step_timestamp_seconds"] == "seconds"
    assert units["alexnet_train_loss"] == ""


def test_the_page_lists_every_metric() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    assert page == with_tables(page), "call: python -m pipeline.metrics.tables docs/metrics.md"
    listed = re.findall(r"^\| `(alexnet_\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(metric.name for metric in ALL_METRICS)


def test_the_command_that_writes_the_tables_says_what_it_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.md"
    assert write_tables([str(page)]) == 1
    error = f"error: {page} cannot be rewritten: {page}: No such file or directory\n"
    assert capsys.readouterr().err == error
    page.write_text("before\n<!-- metrics: exporter -->\nold\n<!-- end -->\nafter\n")
    assert write_tables([str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- metrics: exporter -->\n\n| name |")
    assert text.endswith("\n\n<!-- end -->\nafter\n")
    assert "old" not in text


def published_steps(path: Path) -> float:
    families = read_rank_file(path).families
    (sample,) = next(f.samples for f in families if f.name == "alexnet_train_steps")
    return sample.value


def test_close_publishes_the_last_values(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    metrics = RankMetrics(0, 0, registry)
    publisher = Publisher(
        tmp_path / "metrics", registry, rank=0, local_rank=0, interval_seconds=3600
    )
    path = tmp_path / "metrics" / "rank-00000.prom"
    wait_for(path.exists, "the first values, at once")
    metrics.record_step(1, {})
    publisher.close()
    publisher.close()
    assert published_steps(path) == 1
    assert read_rank_file(path).is_up(read_rank_file(path).heartbeat)


def test_leftovers_of_a_killed_predecessor_go(tmp_path: Path) -> None:
    own, other = tmp_path / ".tmp-rank-00001.prom-abc", tmp_path / ".tmp-rank-00002.prom-abc"
    own.touch()
    other.touch()
    Publisher(tmp_path, CollectorRegistry(), rank=1, local_rank=0, interval_seconds=2).close()
    assert not own.exists()
    assert other.exists()


class Outage:
    """A disk that can fail, again and again, and be repaired."""

    def __init__(self, directory: Path, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self.directory = directory
        self.begin = begin
        self.end = end


@contextlib.contextmanager
def full_disk(tmp_path: Path) -> Iterator[Outage]:
    """A tiny file system that a file fills."""
    disk = tmp_path / "disk"
    filler = disk / "filler"

    def fill_up() -> None:
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    with small_disk(disk, "64k"):
        yield Outage(disk / "metrics", fill_up, filler.unlink)


@contextlib.contextmanager
def lost_directory(tmp_path: Path) -> Iterator[Outage]:
    """A directory whose place a file takes, in one atomic step."""
    directory, elsewhere, file = (tmp_path / name for name in ("metrics", "elsewhere", "file"))
    elsewhere.mkdir()
    directory.symlink_to(elsewhere)

    def replace() -> None:
        if directory.is_symlink():
            file.touch()
            file.replace(directory)

    yield Outage(directory, replace, directory.unlink)


@pytest.mark.parametrize("outage_of", [full_disk, lost_directory])
def test_a_failing_disk_is_counted_and_outlived(
    outage_of: Callable[[Path], contextlib.AbstractContextManager[Outage]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()
    metrics = RankMetrics(0, 0, registry)

    def failures() -> float:
        labels = {"rank": "0", "local_rank": "0"}
        return registry.get_sample_value("alexnet_metrics_publish_failures_total", labels) or 0

    def is_failing() -> bool:
        outage.begin()  # each time: a file that was being replaced gives its space back
        return failures() >= 3

    with outage_of(tmp_path) as outage:
        path = outage.directory / "rank-00000.prom"
        publisher = Publisher(
            outage.directory, registry, rank=0, local_rank=0, interval_seconds=0.02
        )
        wait_for(path.exists, "the first values")
        wait_for(is_failing, "three failures")
        metrics.record_step(1, {})
        outage.end()
        wait_for(lambda: path.exists() and published_steps(path) == 1, "new values")
        publisher.close()
        assert not list(outage.directory.glob(".tmp-*"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot write metrics to" in caplog.text


def test_a_hanging_disk_does_not_hold_up_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    has_hung, repaired = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        has_hung.set()
        repaired.wait()

    monkeypatch.setattr(publisher_module, "write_atomically", hang)
    monkeypatch.setattr(publisher_module, "CLOSE_SECONDS", 0.05)
    publisher = Publisher(tmp_path, CollectorRegistry(), rank=0, local_rank=0, interval_seconds=2)
    assert has_hung.wait(DEADLINE_SECONDS)
    publisher.close()
    assert "the last metrics may be missing" in caplog.text
    repaired.set()
