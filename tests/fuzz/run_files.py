"""Fuzzers of what a run leaves, and of what others leave beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

from data_prep.convert.metrics import ConversionMetrics
from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.manifest import ShardSetError, read_manifest
from launch.runs import describe
from pipeline.config.saved import from_json, to_json
from pipeline.explain.evidence import Evidence
from pipeline.explain.explain import explain, explained
from pipeline.metrics.conversions import RootConversions
from pipeline.metrics.discovery import Target as PrometheusTarget
from pipeline.metrics.node import NodeCollector
from pipeline.metrics.outcomes import read_run_status
from pipeline.metrics.rank_file import Writer, last_heartbeat, read_rank_file
from pipeline.report.inputs import Missing, Predictions, read_predictions, read_shard_set
from pipeline.report.neighbours import Neighbours, read_neighbours, write_neighbours
from pipeline.report.ranks import compare_ranks
from pipeline.run import checkpoint, dataset
from pipeline.run.checkpoint import CheckpointError
from pipeline.run.dataset import Dataset
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import last_of_training, read_events, read_rows
from pipeline.run.event_rows import event_of, row_of
from pipeline.run.event_tail import EventTail
from pipeline.run.events import Event
from pipeline.run.lock import JobStart, lock_run, log_at_work
from pipeline.run.settings import Settings, read_saved, read_settings
from pipeline.watch.text import last_lines
from pipeline.watch.view import RunView
from tests.fuzz.harness import Harness, Target, check_types, expect
from tests.fuzz.mutation import (
    change_bytes,
    change_json,
    change_json_lines,
    change_text,
    inside_zip,
)
from tests.pipeline.fake_run import write_run

RUN = Path(__file__).parents[1] / "formats/v1/run"


def _config(folder: Path) -> Target:
    run = RunDirectory(folder)
    whole = (RUN / "config.json").read_bytes()

    def read(content: bytes) -> None:
        run.config.write_bytes(content)
        settings = read_settings(run)
        check_types(settings, Settings)
        expect(from_json(to_json(settings.config)) == settings.config, "another one, once saved")
        settings.check_continues({**read_saved(run), **settings.to_json()}, run.config)

    return Target([whole], read)


def _events(folder: Path) -> Target:
    """All readers give the same rows, and what is said of a run can be said of any rows."""
    run = RunDirectory(folder)
    shutil.copy(RUN / "config.json", run.config)
    whole = (RUN / "events.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)

    def read(content: bytes) -> None:
        run.events.write_bytes(content + b"\n")
        rows = list(read_rows(run.events))
        for row in rows:
            check_types(row, type(row))
            expect(_row(row) == _row(event_of(row_of(row))), f"{row} is another one once written")
        tail = EventTail(run.events).new_rows()
        expect([*map(_row, tail)] == [*map(_row, rows)], "the tail has other rows")
        last_of_training(run.events)
        seen = Evidence.read(run, rows, time.time(), asks=False)
        found = explained(seen)
        expect(found.state, found)
        json.dumps(found.to_json())
        describe(run, read_events(run.events), seen.status, found)
        RunView(run, run.path.resolve()).refresh(time.time())

    return Target([whole, *(b"".join(lines[n : n + 6]) for n in range(0, len(lines), 6))], read)


def _row(event: Event | None) -> str:
    """As it can be compared: NaN is not equal to itself."""
    return repr(event and row_of(event))


def _rank_file(folder: Path) -> Target:
    """Read by the node's exporter, which leaves out what is damaged, and by those who explain."""
    run = RunDirectory(folder)
    run.metrics.mkdir()
    shutil.copy(RUN / "events.jsonl", run.events)
    path = run.metrics / "rank-00000.prom"
    whole = (RUN / "metrics/rank-00000.prom").read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        last_heartbeat(run.metrics)
        host = json.loads(whole.partition(b"\n")[0][2:])["host"]
        collector = NodeCollector(run, host)
        collector.collect()
        collector.has_running_ranks()
        json.dumps(explain(run, time.time(), asks=False).to_json())
        compare_ranks(read_run_status(run, host, time.time()))
        found = read_rank_file(path)
        check_types(found.writer, Writer)
        check_types(found.heartbeat, float)

    return Target([whole], read)


def _target(folder: Path) -> Target:
    """Of Prometheus, in a folder that runs share: no target, or one that can be asked."""
    path = folder / "x.json"
    labels = {"__scheme__": "http", "__param_exporter": "1", "run": "x"}
    whole = json.dumps([{"targets": ["127.0.0.1:9"], "labels": labels}]).encode()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if (found := PrometheusTarget.read(path)) is not None:
            check_types(found.address, str)
            check_types(dict(found.labels), dict[str, str])

    return Target([whole], read)


def _dataset(folder: Path) -> Target:
    path = folder / dataset.NAME
    shards = RUN.parent / "shards/scaled"
    manifest = read_manifest(shards)
    dataset.write_dataset(
        folder, Dataset.of_shards(shards, manifest, "0" * 64, with_mean_image=True)
    )

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found = dataset.read_dataset(folder)
        check_types(dataclasses.replace(found, mean_image=None), Dataset)
        expect(found.num_classes > 0, "no classes")

    return Target([path.read_bytes()], read)


def _predictions(folder: Path) -> Target:
    """Of the report: they are used only if they fit the shard set and the events."""
    run = write_run(folder, ("cat", "dog", "owl"))
    shard_set = read_shard_set(read_saved(run))
    events = read_events(run.events)
    path = run.predictions("val")

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found = read_predictions(path, shard_set, events)
        if isinstance(found, Missing):
            expect(len(str(found).splitlines()) == 1, f"{found}")
            return
        check_types(found, Predictions)
        expect(found.topk_classes.shape == found.topk_probabilities.shape, "other shapes")
        expect(len(found.topk_classes) == len(found.labels), "answers for other images")
        expect(((found.topk_classes >= 0) & (found.topk_classes < 3)).all(), "of no class")

    return Target([path.read_bytes()], read)


def _neighbours(folder: Path) -> Target:
    path = folder / "neighbours.json"
    nearest = {0: [(4, 0.5), (7, 1.5)], 3: [(1, 0.0)]}
    counts = {"num_searched": 9, "num_train": 9, "num_damaged": 0, "num_units": 8, "step": 4}
    found = Neighbours(state_sha256="a", manifest_sha256="b", nearest=nearest, **counts)
    write_neighbours(path, found)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        check_types(read_neighbours(path), Neighbours)

    return Target([path.read_bytes()], read)


def _lock(folder: Path) -> Target:
    """Of a run that this process has."""
    run = RunDirectory(folder)
    handle = lock_run(run, JobStart(job="12", number=1), 0.0, str(RUN / "config.json"))
    path = folder / ".lock"
    whole = path.read_bytes()

    def read(content: bytes) -> None:
        os.truncate(handle, 0)
        os.pwrite(handle, content, 0)
        check_types(log_at_work(run), Path | None)

    return Target([whole], read)


def _checkpoint_facts(folder: Path) -> Target:
    """Of the file beside the state: any other size or hash is damage."""
    path = folder / "step-00000001"
    path.mkdir()
    (path / "state.pt").write_bytes(b"state")
    sha256 = sha256_of(path / "state.pt")
    facts = {"format_version": 1, "step": 1, "num_bytes": 5, "sha256": sha256}

    def read(content: bytes) -> None:
        (path / checkpoint.FACTS).write_bytes(content)
        checkpoint.verify(path)
        found = json.loads(content)
        expect(found["num_bytes"] == 5 and found["sha256"] == sha256, f"{found} is taken")

    return Target([json.dumps(facts, indent=1).encode()], read)


def _conversion_metrics(folder: Path) -> Target:
    """Of other users' conversions, which the exporter of a root shows."""
    path = folder / "conversions/x.prom"
    path.parent.mkdir()
    metrics = ConversionMetrics(path, folder, None)
    metrics.begin(12)
    whole = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        RootConversions(folder).collect()

    return Target([whole], read)


def _log(folder: Path) -> Target:
    """Of a job, in which the cause of its end is looked for, and what its ranks left when it hung.

    Begins with one byte, which says where the text is.
    """
    run = RunDirectory(folder)
    shutil.copy(RUN / "config.json", run.config)
    events = (RUN / "events.jsonl").read_bytes().splitlines(keepends=True)
    run.events.write_bytes(b"".join(events[:6]))
    rows = read_events(run.events)
    for place in (run.logs, run.hangs):
        place.mkdir()
    paths = run.logs / "1.log", run.hangs / "rank-00000.txt"
    heartbeat = "rank 1 on node17 hangs, reading data after step 12 for 61 s"

    def read(content: bytes) -> None:
        path = paths[content[0] % 2 if content else 0]
        path.write_bytes(content[1:])
        try:
            found = explain(run, time.time(), events=rows, asks=False)
            json.dumps(found.to_json())
            expect(all(isinstance(line, str) for line in last_lines(path)), "lines that are none")
        finally:
            path.unlink()

    texts = [
        "shards: x\nerror: rank 1 on node17: no room\n",
        "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT\n",
        f"error: {heartbeat}; the stacks of all ranks are in x\n",
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n",
        "Signal 9 (SIGKILL) received by PID 17\r\nstep 1\rstep 2\n",
    ]
    return Target([*(b"\0" + text.encode() for text in texts), b"\1" + heartbeat.encode()], read)


def _best(folder: Path) -> Target:
    """The file that names the best checkpoint, where there are no links."""
    path = folder / "step-00000001"
    path.mkdir()

    def read(content: bytes) -> None:
        (folder / checkpoint.BEST).write_bytes(content)
        found = checkpoint.named(folder, checkpoint.BEST)
        expect(found == path.resolve(), f"{found} is outside")

    return Target([b"step-00000001", b"step-00000001\n"], read)


HARNESSES = (
    Harness(name="log", prepare=_log, errors=(), changes=(change_text,)),
    Harness(name="best", prepare=_best, errors=(CheckpointError,), changes=(change_text,)),
    Harness(name="config", prepare=_config, errors=(ValueError,), changes=(change_json,)),
    Harness(
        name="events",
        prepare=_events,
        errors=(ValueError,),
        changes=(change_json_lines, change_json_lines, change_text),
    ),
    Harness(
        name="rank-file",
        prepare=_rank_file,
        errors=(ValueError,),
        changes=(change_text, change_json_lines),
    ),
    Harness(name="target", prepare=_target, errors=(), changes=(change_json,)),
    Harness(
        name="dataset",
        prepare=_dataset,
        errors=(ValueError, ShardSetError),
        changes=(change_json,),
    ),
    Harness(
        name="predictions",
        prepare=_predictions,
        errors=(ValueError,),
        changes=(inside_zip((change_bytes,)),),
    ),
    Harness(name="neighbours", prepare=_neighbours, errors=(ValueError,), changes=(change_json,)),
    Harness(name="lock", prepare=_lock, errors=(), changes=(change_json,)),
    Harness(
        name="checkpoint-facts",
        prepare=_checkpoint_facts,
        errors=(CheckpointError,),
        changes=(change_json,),
    ),
    Harness(
        name="conversion-metrics", prepare=_conversion_metrics, errors=(), changes=(change_text,)
    ),
)
