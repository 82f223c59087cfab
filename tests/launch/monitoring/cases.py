"""What Prometheus sees of a run when something is wrong with it, and which alert should fire then.

A case is one run: that of `healthy`, but for the series it replaces. All cases are put to all rules
at once, so a case says of every other alert that it does not fire.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from launch.monitoring.alerts import ALERTS
from pipeline.config.timeouts import ALERT_SAVE_MINUTES, ALERT_STALL_MINUTES

Values = Callable[[float], float | None]
"""The value at a time in seconds; None where there is no sample."""

BEGIN = 300.0
"""When something goes wrong."""


class Series(NamedTuple):
    """One series of a run, which is a label of its own."""

    name: str
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Firing:
    """An alert that should fire from one time to another, both in seconds; None: to the end."""

    alert: str
    since: float
    until: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    says: str
    """Its summary."""


@dataclass(frozen=True, kw_only=True)
class Case:
    run: str
    about: tuple[str, ...]
    """The alerts that it tests."""
    series: Mapping[Series, Values]
    firing: tuple[Firing, ...] = ()
    step: int = 60
    """Seconds between two samples."""
    kind: str = "run"
    """Or conversion."""
    looks: tuple[float, ...] = ()
    """Times to look at, beside those at which something changes."""


def rank(name: str, number: int = 0, **labels: str) -> Series:
    """A metric of a rank, from the exporter."""
    return job(name, rank=str(number), local_rank=str(number), **labels)


def job(name: str, **labels: str) -> Series:
    """One of the job, from the exporter."""
    own = {"node": "n1", "run_dir": "/runs", "instance": "n1:9753", "job": "alexnet_train"}
    return Series(f"alexnet_{name}", tuple(sorted((own | labels).items())))


def root(name: str, **labels: str) -> Series:
    """One that `launch prometheus` serves."""
    own = {"instance": "127.0.0.1:9752", "job": "alexnet_outcomes"}
    return Series(f"alexnet_{name}", tuple(sorted((own | labels).items())))


def root_rank(number: int, outcome: str) -> Series:
    return root(
        "rank_outcome", rank=str(number), local_rank=str(number), node="n1", outcome=outcome
    )


UP = Series("up", job("").labels)


def always(value: float) -> Values:
    return lambda _: value


def switch(*values: float | None, at: tuple[float, ...] = (BEGIN,)) -> Values:
    """The first value until the first time, and so on."""
    return lambda t: values[sum(t >= border for border in at)]


def pulse(value: float, until: float | None = None, rest: float = 0) -> Values:
    """`rest`, from BEGIN on `value`, and from `until` on `rest` again."""
    return lambda t: value if t >= BEGIN and (until is None or t < until) else rest


def clock(stop: float = 1e9, resume: float = 1e9, behind: float = 0) -> Values:
    """A timestamp that stands still between `stop` and `resume`."""
    return lambda t: (t if t < stop or t >= resume else stop) - behind


def rate(per_second: float, begin: float = 0, before: float = 0.0) -> Values:
    """A counter that rises from `begin` on; until then by `before` a second."""
    return lambda t: before * min(t, begin) + per_second * max(0.0, t - begin)


def gone(values: Values, at: float) -> Values:
    """The same until then."""
    return lambda t: values(t) if t < at else None


RANKS = (0, 1)


def outcomes(
    outcome: str, since: float, until: float = 1e9, ranks: Iterable[int] = ()
) -> dict[Series, Values]:
    """The run ends so, and these ranks; at last it runs again."""
    found: dict[Series, Values] = {}
    for name in {"running", "completed", "failed", outcome}:
        values = switch(name == "running", name == outcome, name == "running", at=(since, until))
        for server in (job, root):
            found[server("run_outcome", outcome=name)] = values
        for number in ranks:
            found[rank("rank_outcome", number, outcome=name)] = values
            found[root_rank(number, name)] = values
    for number in ranks:
        found[rank("rank_up", number)] = switch(1, 0, 1, at=(since, until))
    return found


def killed(numbers: Iterable[int], since: float, until: float = 1e9) -> dict[Series, Values]:
    """These ranks are gone without a word; at last they run again."""
    found: dict[Series, Values] = {}
    for number in numbers:
        for name, here in (("running", 1), ("killed", 0)):
            values = switch(here, 1 - here, here, at=(since, until))
            found[rank("rank_outcome", number, outcome=name)] = values
            found[root_rank(number, name)] = values
        found[rank("rank_up", number)] = switch(1, 0, 1, at=(since, until))
    return found


def phases(*names: str, since: float = BEGIN, until: float = 1e9) -> dict[Series, Values]:
    """What rank 0, 1, … is doing from a time on, up to another; else it is computing."""
    found: dict[Series, Values] = {}
    for number, name in enumerate(names):
        usual, now = (
            rank("rank_phase", number, phase="computing"),
            rank("rank_phase", number, phase=name),
        )
        found[usual] = switch(1, 0, 1, at=(since, until))
        found[now] = switch(0, 1, 0, at=(since, until))
    return found


def steps(values: Values) -> dict[Series, Values]:
    """When the last step of each rank was."""
    return {rank("last_step_timestamp_seconds", number): values for number in RANKS}


def ledger(**seconds: Values) -> dict[Series, Values]:
    """Seconds by class."""
    return {
        server("run_seconds_total", **{"class": name}): values
        for server in (job, root)
        for name, values in seconds.items()
    }


def waiting(*ratios: float) -> dict[Series, Values]:
    """Each rank waits so much for data from BEGIN on; before, a tenth, beside evaluations."""
    found: dict[Series, Values] = {}
    for number, ratio in enumerate(ratios):
        wait = rank("step_seconds_total", number, phase="data_wait")
        compute = rank("step_seconds_total", number, phase="forward_backward")
        found[wait] = rate(ratio, BEGIN, 0.05)
        found[compute] = rate(1 - ratio, BEGIN, 0.45)
    return found


def healthy() -> dict[Series, Values]:
    """A run of two ranks on the node n1, as all is well."""
    found = {UP: always(1.0), job("not_learning"): always(0)}
    for number in RANKS:
        found[rank("rank_up", number)] = always(1)
        found[rank("train_steps_total", number)] = rate(1)
        found[rank("rank_phase", number, phase="computing")] = always(1)
        found[rank("straggler", number, phase="data_wait")] = always(0)
        for name in ("train_steps_skipped", "loss_not_finite", "loader_sample_failures"):
            found[rank(f"{name}_total", number)] = always(0)
        found[rank("replica_differs", number)] = always(0)
        found[rank("loader_seconds_total", number, phase="read")] = rate(0.25)
        found[rank("loader_seconds_total", number, phase="decode")] = rate(0.5)
        found[rank("loader_bytes_read_total", number, source="tar")] = rate(1e6)
        for name in ("running", "killed"):
            found[rank("rank_outcome", number, outcome=name)] = always(name == "running")
            found[root_rank(number, name)] = always(name == "running")
    for name in ("delay_wanders", "delay_unattributed"):
        found[job(name)] = always(0)
    found[job("checkpoint_failures_total", kind="periodic")] = always(0)
    found[job("checkpoint_last_success_timestamp_seconds")] = clock()
    found[job("run_start_timestamp_seconds")] = always(0)
    found[job("checkpoint_bytes")] = always(1e6)
    for server in (job, root):
        found[server("run_preemptions_total")] = always(0)
        found[server("disk_free_bytes")] = always(5e9)
        found[server("disk_size_bytes")] = always(1e10)
    return (
        found
        | outcomes("running", 0)
        | waiting(0.1, 0.1)
        | steps(clock())
        | ledger(steps=rate(0.9), evaluation=rate(0.1))
    )


_RANK_1 = {"node": "n1", "rank": "1"}
_BOTH_COUNTED = {"loss_not_finite": "LossNotFinite", "loader_sample_failures": "CorruptSamples"}


def _counts(name: str, window: float, says: str) -> tuple[Case, ...]:
    """A counter of rank 1 that rises, and one whose first sample is already above 0."""
    counter, alert = rank(f"{name}_total", 1), _BOTH_COUNTED[name]
    firing = {"since": BEGIN, "until": BEGIN + window, "labels": _RANK_1}
    values = {"rises": pulse(1), "begins-at-1": switch(None, 1)}
    return tuple(
        Case(
            run=f"{name}-{case}",
            about=(alert,),
            series={counter: value},
            firing=(
                Firing(alert=alert, says=f"run {name}-{case}: rank 1 on n1 {says}", **firing),  # type: ignore[arg-type]
            ),
        )
        for case, value in values.items()
    )


def _stalled(
    run: str, says: str, *, by: float, doing: tuple[str, str], step: int = 60, **labels: str
) -> Case:
    """No step after BEGIN; the alert comes when the last one is `by` seconds ago."""
    fires = Firing(alert="RunStalled", since=BEGIN + by + step + 60, labels=labels, says=says)
    return Case(
        run=run,
        about=("RunStalled",),
        step=step,
        series=steps(clock(BEGIN)) | phases(*doing),
        firing=(fires,),
    )


def _disk(run: str, free: Values, size: float, checkpoint: float, until: float) -> Case:
    fires = Firing(
        alert="DiskNearlyFull",
        since=BEGIN + 30,
        until=until,
        says=f"run {run}: the disk of its checkpoints is nearly full",
    )
    return Case(
        run=run,
        about=("DiskNearlyFull",),
        step=15,
        series={
            job("disk_free_bytes"): free,
            job("disk_size_bytes"): always(size),
            job("checkpoint_bytes"): always(checkpoint),
        },
        firing=(fires,),
    )


def conversion(truncated: float, progress: Values) -> dict[Series, Values]:
    """Two tasks that have stored 1,500 images; one of them rejects some from BEGIN on."""
    found: dict[Series, Values] = {}
    for server in (job, root):
        for task in ("0", "1"):
            found[server("convert_samples_total", task=task)] = always(750)
            for reason in ("truncated", "empty"):
                found[server("convert_rejected_total", task=task, reason=reason)] = always(0)
            found[server("convert_last_progress_timestamp_seconds", task=task)] = progress
        found[server("convert_rejected_total", task="1", reason="truncated")] = pulse(truncated)
        found[server("convert_rejected_total", task="1", reason="empty")] = pulse(3)
    return found


_HOUR = 3600.0
_FULL = {server("disk_free_bytes"): pulse(0, 900, 5e9) for server in (job, root)}

CASES = (
    Case(run="quiet", about=(), series={}),
    _disk("room-for-fewer-than-3", pulse(2.9e6, 900, 3e6), 1e8, 1e6, 900),
    _disk("less-than-2-percent", pulse(1.9e8, 900, 2.1e8), 1e10, 0, 900),
    Case(
        run="other-weights",
        about=("ReplicasDiffer",),
        series={rank("replica_differs", 1): pulse(1, 600)},
        firing=(
            Firing(
                alert="ReplicasDiffer",
                since=BEGIN,
                until=600,
                labels=_RANK_1,
                says="run other-weights: rank 1 on n1 has other weights than the rest",
            ),
        ),
    ),
    *_counts("loss_not_finite", 900, "has a loss that is not a number"),
    *_counts("loader_sample_failures", 1800, "has read damaged images"),
    *(
        Case(
            run=f"no-checkpoint-{case}",
            about=("CheckpointFailing",),
            step=15,
            series={job("checkpoint_failures_total", kind="periodic"): values},
            firing=(
                Firing(
                    alert="CheckpointFailing",
                    since=BEGIN + 45,
                    until=BEGIN + 1800,
                    labels={"kind": "periodic"},
                    says=f"run no-checkpoint-{case}: a checkpoint (periodic) could not be written",
                ),
            ),
        )
        for case, values in {"rises": pulse(1), "begins-at-1": switch(None, 1)}.items()
    ),
    Case(
        run="no-checkpoint-full-disk",
        about=(),
        step=15,
        series={job("checkpoint_failures_total", kind="periodic"): pulse(1), **_FULL},
        firing=(
            Firing(
                alert="DiskNearlyFull",
                since=BEGIN + 30,
                until=900,
                says="run no-checkpoint-full-disk: the disk of its checkpoints is nearly full",
            ),
            Firing(  # five minutes after the disk had room again
                alert="CheckpointFailing",
                since=885 + 300 + 15 + 45,
                until=BEGIN + 1800,
                labels={"kind": "periodic"},
                says="run no-checkpoint-full-disk: a checkpoint (periodic) could not be written",
            ),
        ),
    ),
    Case(  # what is only pending explains nothing
        run="no-checkpoint-moments-of-a-full-disk",
        about=(),
        step=15,
        series={
            job("checkpoint_failures_total", kind="periodic"): pulse(1),
            job("disk_free_bytes"): lambda t: 0 if t % 60 == 0 else 5e9,
        },
        firing=(
            Firing(
                alert="CheckpointFailing",
                since=BEGIN + 45,
                until=BEGIN + 1800,
                labels={"kind": "periodic"},
                says="run no-checkpoint-moments-of-a-full-disk: a checkpoint (periodic) could not "
                "be written",
            ),
        ),
    ),
    Case(  # seen from another host, a silent rank is a killed one
        run="stopped-by-signal",
        about=("HangSuspected", "RankDead"),
        step=15,
        series={
            rank("rank_up", 1): pulse(0, 900, 1),
            root_rank(1, "killed"): pulse(1, 900),
            root_rank(1, "running"): pulse(0, 900, 1),
            **steps(clock(BEGIN, 900)),
        },
        firing=(
            Firing(
                alert="HangSuspected",
                since=BEGIN + 60,
                until=900,
                labels=_RANK_1,
                says="run stopped-by-signal: rank 1 on n1 is there, but publishes nothing",
            ),
        ),
    ),
    Case(  # a busy host
        run="silent-for-a-moment",
        step=15,
        about=("HangSuspected",),
        series={rank("rank_up", 1): pulse(0, BEGIN + 45, 1)},
    ),
    _stalled(
        "shard-that-does-not-come",
        "run shard-that-does-not-come does no steps: rank 1 on n1 is reading",
        by=60 * ALERT_STALL_MINUTES,
        step=15,
        doing=("averaging", "reading"),
        phase="reading",
        **_RANK_1,
    ),
    *(
        _stalled(
            f"stands-still-{phase}",
            f"run stands-still-{phase} does no steps: rank 0 on n1 is {phase}",
            by=60 * ALERT_STALL_MINUTES,
            doing=(phase, "averaging"),
            phase=phase,
            node="n1",
            rank="0",
        )
        for phase in ("copying", "computing")
    ),
    _stalled(
        "network-gone",
        "run network-gone does no steps",
        by=60 * ALERT_STALL_MINUTES,
        doing=("averaging", "averaging"),
    ),
    _stalled(
        "long-evaluation",
        "run long-evaluation does no steps: rank 0 on n1 is evaluating",
        by=60 * ALERT_SAVE_MINUTES,
        doing=("evaluating", "averaging"),
        phase="evaluating",
        node="n1",
        rank="0",
    ),
    _stalled(
        "long-gathering",
        "run long-gathering does no steps",
        by=60 * ALERT_SAVE_MINUTES,
        doing=("gathering", "averaging"),
    ),
    _stalled(
        "long-saving",
        "run long-saving does no steps: rank 0 on n1 is saving",
        by=60 * ALERT_SAVE_MINUTES,
        doing=("saving", "saving"),
        phase="saving",
        node="n1",
        rank="0",
    ),
    Case(
        run="evaluation",
        about=("RunStalled",),
        series=steps(clock(BEGIN, 1500)) | phases("evaluating", "gathering", until=1500),
    ),
    Case(
        run="slow-steps",
        about=("RunStalled",),
        series=steps(clock(BEGIN, BEGIN + 180)),
    ),
    Case(  # all there is of its ranks was left by an attempt that was killed long ago
        run="begins-again",
        about=("RankDead", "RunStalled", "HangSuspected"),
        series=killed(RANKS, 0) | steps(always(0)),
    ),
    Case(  # the exporter's own host knows it, the root's does not yet
        run="kill-on-another-host",
        about=("RankDead", "HangSuspected"),
        series={
            **killed([1], BEGIN),
            root_rank(1, "running"): always(1),
            root_rank(1, "killed"): always(0),
        },
        firing=(
            Firing(
                alert="RankDead",
                since=BEGIN,
                labels=_RANK_1,
                says="run kill-on-another-host: rank 1 on n1 was killed",
            ),
        ),
    ),
    Case(
        run="kill-of-one-rank",
        about=("RankDead",),
        series=killed([1], BEGIN, 600) | outcomes("failed", BEGIN + 15, 600),
        firing=(
            Firing(
                alert="RankDead",
                since=BEGIN,
                until=600,
                labels=_RANK_1,
                says="run kill-of-one-rank: rank 1 on n1 was killed",
            ),
        ),
    ),
    Case(
        run="loss-of-the-host",
        about=("RankDead",),
        series={
            **{series: gone(values, BEGIN) for series, values in healthy().items()},
            UP: pulse(0, rest=1),
            **{
                series: values
                for series, values in (killed(RANKS, BEGIN) | outcomes("killed", BEGIN)).items()
                if dict(series.labels)["job"] == "alexnet_outcomes"
            },
        },
        firing=tuple(
            Firing(
                alert="RankDead",
                since=BEGIN,
                labels={"node": "n1", "rank": str(number)},
                says=f"run loss-of-the-host: rank {number} on n1 was killed",
            )
            for number in RANKS
        ),
    ),
    Case(
        run="loss-of-one-of-two-hosts",
        about=("RankDead", "ExporterDown"),
        series={
            **{
                series: gone(values, 0)
                for series, values in healthy().items()
                if dict(series.labels).get("rank") == "1"
            },
            **{
                root("rank_outcome", rank="1", node="n2", outcome=outcome): values
                for outcome, values in (("running", pulse(0, rest=1)), ("killed", pulse(1)))
            },
            Series("up", job("", node="n2").labels): pulse(0, rest=1),
        },
        firing=(
            Firing(
                alert="RankDead",
                since=BEGIN,
                labels={"node": "n2", "rank": "1"},
                says="run loss-of-one-of-two-hosts: rank 1 on n2 was killed",
            ),
        ),
    ),
    *(
        Case(
            run=f"ended-{outcome}",
            about=("RunFailed",),
            step=15,
            series=outcomes(outcome, BEGIN, BEGIN + 180),
            firing=(
                Firing(
                    alert="RunFailed",
                    since=BEGIN + 60,
                    until=BEGIN + 180,
                    labels={"outcome": outcome},
                    says=f"run ended-{outcome} {verb} {outcome}",
                ),
            ),
        )
        for verb, outcome in (("has", "failed"), ("was", "killed"))
    ),
    *(
        Case(
            run=f"ended-{outcome}",
            about=("RunFailed", "RankDead"),
            series=outcomes(outcome, BEGIN, ranks=RANKS),
        )
        for outcome in ("completed", "stopped")
    ),
    Case(
        run="skips",
        about=("StepsSkipped",),
        series={
            rank(f"train_steps_{name}", number): values
            for number in RANKS
            for name, values in (
                ("skipped_total", rate(0.035, BEGIN)),
                ("total", rate(0.5, BEGIN, 1.0)),
            )
        },
        firing=(
            Firing(
                alert="StepsSkipped",
                since=BEGIN + 540 + 600,
                says="run skips skips 7% of its steps",
            ),
        ),
    ),
    Case(
        run="skips-few",
        about=("StepsSkipped",),
        series={rank("train_steps_skipped_total", number): rate(0.04, BEGIN) for number in RANKS},
    ),
    Case(
        run="guesses",
        about=("NotLearning",),
        series={job("not_learning"): pulse(1, 900)},
        firing=(
            Firing(
                alert="NotLearning", since=BEGIN + 300, until=900, says="run guesses does not learn"
            ),
        ),
    ),
    Case(
        run="slow-rank",
        about=("Straggler",),
        series={rank("straggler", 1, phase="forward_backward"): pulse(1, 900)},
        firing=(
            Firing(
                alert="Straggler",
                since=BEGIN + 300,
                until=900,
                labels={**_RANK_1, "phase": "forward_backward", "of": "rank"},
                says="run slow-rank is slowed down by rank 1 on n1 (forward_backward)",
            ),
        ),
    ),
    *(
        Case(
            run=f"slow-{of}",
            about=("Straggler",),
            series={job(metric): pulse(1, 900)},
            firing=(
                Firing(
                    alert="Straggler",
                    since=BEGIN + 300,
                    until=900,
                    labels={"of": of},
                    says=f"run slow-{of} is slowed down by {who}",
                ),
            ),
        )
        for of, metric, who in (
            ("loader", "delay_wanders", "the loader"),
            ("unattributed", "delay_unattributed", "delays that no rank explains"),
        )
    ),
    Case(
        run="waits-for-data",
        about=("DataBound",),
        series=waiting(0.3125, 0.5),
        firing=(
            Firing(
                alert="DataBound",
                since=BEGIN + 180 + 600,
                labels={"phase": "decode"},
                says="run waits-for-data: all ranks wait for data; the limit is to decode it",
            ),
        ),
    ),
    Case(run="waits-a-little", about=("DataBound",), series=waiting(0.2, 0.2)),
    Case(run="one-rank-waits", about=("DataBound",), series=waiting(0.1, 0.75)),
    Case(
        run="no-exporter",
        about=("ExporterDown",),
        series={
            **{
                series: gone(values, BEGIN)
                for series, values in healthy().items()
                if dict(series.labels)["job"] == "alexnet_train"
            },
            UP: gone(pulse(0, rest=1), 480),  # then its target is removed
        },
        firing=(
            Firing(
                alert="ExporterDown",
                since=BEGIN + 300,
                labels={"node": "n1"},
                says="run no-exporter: its exporter on n1 does not answer",
            ),
        ),
    ),
    Case(
        run="no-exporter-since-yesterday",
        about=("ExporterDown",),
        step=600,
        series={
            **{
                series: gone(values, 0)
                for series, values in healthy().items()
                if dict(series.labels)["job"] == "alexnet_train"
            },
            UP: switch(1, None, at=(1200,)),
        },
        firing=(
            Firing(
                alert="ExporterDown",
                since=1800,
                until=600 + 24 * _HOUR + 600,
                labels={"node": "n1"},
                says="run no-exporter-since-yesterday: its exporter on n1 does not answer",
            ),
        ),
    ),
    Case(
        run="exporter-not-wanted",
        about=("ExporterDown",),
        series={
            series: gone(values, 0)
            for series, values in healthy().items()
            if dict(series.labels)["job"] == "alexnet_train"
        },
    ),
    *(
        Case(
            run=run,
            about=("PreemptedTooOften",),
            series={
                **ends,
                **ledger(steps=always(24 * _HOUR)),
                root("run_preemptions_total"): switch(2, 3, 4, 5, at=(BEGIN, 600, 900)),
                job("run_preemptions_total"): switch(None, 4, 5, at=(600, 900)),
            },
            firing=(
                Firing(
                    alert="PreemptedTooOften",
                    since=900,
                    says=f"run {run} was preempted 3 times in six hours",
                ),
            ),
        )
        for run, ends in (
            ("preempted", dict[Series, Values]()),
            ("preempted-and-waiting", outcomes("stopped", 1200)),
        )
    ),
    Case(
        run="preempted-now-and-then",
        about=("PreemptedTooOften",),
        step=600,
        series={
            **ledger(steps=always(24 * _HOUR)),
            root("run_preemptions_total"): switch(2, 3, 4, 5, at=(_HOUR / 2, 3 * _HOUR, 5 * _HOUR)),
            job("run_preemptions_total"): gone(always(0), 0),
        },
        firing=(
            Firing(
                alert="PreemptedTooOften",
                since=5 * _HOUR,
                until=6.5 * _HOUR,
                says="run preempted-now-and-then was preempted 3 times in six hours",
            ),
        ),
    ),
    Case(
        run="preempted-before-it-was-seen",  # it is younger than six hours, until it is not
        about=("PreemptedTooOften",),
        step=600,
        series={
            root("run_preemptions_total"): always(3),
            job("run_preemptions_total"): gone(always(0), 0),
        },
        firing=(
            Firing(
                alert="PreemptedTooOften",
                since=0,
                until=6 * _HOUR + 600,
                says="run preempted-before-it-was-seen was preempted 3 times in six hours",
            ),
        ),
    ),
    Case(
        run="preempted-and-done",
        about=("PreemptedTooOften",),
        series={
            **outcomes("completed", BEGIN),
            job("run_preemptions_total"): switch(0, 3),
        },
    ),
    Case(
        run="preempted-twice",
        about=("PreemptedTooOften",),
        series={job("run_preemptions_total"): switch(0, 1, 2, at=(BEGIN, 600))},
    ),
    Case(
        run="little-work",
        about=("GoodputLow",),
        series=ledger(
            steps=pulse(3000),
            evaluation=pulse(2500),
            starting=pulse(2000),
            queued=always(9000),
        ),
        firing=(
            Firing(
                alert="GoodputLow",
                since=BEGIN + 900,
                labels={"class": "evaluation"},
                says="run little-work spends less than half its time on steps; most goes to "
                "evaluation",
            ),
        ),
    ),
    Case(
        run="long-in-the-queue",
        about=("GoodputLow",),
        series=ledger(steps=pulse(4500), evaluation=pulse(3000), queued=pulse(10000)),
    ),
    Case(
        run="young-and-long-in-the-queue",
        about=("GoodputLow",),
        series=ledger(steps=pulse(1000), evaluation=pulse(4000), queued=pulse(9000)),
    ),
    Case(  # its exporter shows the last values for three minutes, and none of them is news
        run="stopped-amid-trouble",
        about=(
            *("DiskNearlyFull", "HangSuspected", "RunStalled", "StepsSkipped", "NotLearning"),
            *("Straggler", "DataBound", "ExporterDown", "GoodputLow"),
        ),
        series={
            **outcomes("stopped", 0),
            **{server("disk_free_bytes"): always(0) for server in (job, root)},
            **{rank("train_steps_skipped_total", number): rate(0.5) for number in RANKS},
            **steps(always(0)),
            **waiting(0.5, 0.5),
            **ledger(steps=always(10), evaluation=always(9000)),
            rank("rank_up", 1): always(0),
            rank("straggler", 1, phase="h2d"): always(1),
            job("not_learning"): always(1),
        },
    ),
    Case(  # and ended ranks seen by the root alone
        run="stopped-without-an-exporter",
        about=("ExporterDown",),
        series={
            **outcomes("stopped", 0),
            UP: always(0),
        },
    ),
    *(
        Case(
            run=run,
            about=("CheckpointTooOld",),
            step=120,
            series={
                job("checkpoint_last_success_timestamp_seconds"): saved,
                job("run_start_timestamp_seconds"): always(started),
                **(outcomes("stopped", 0) if behind is None else steps(clock(behind=behind))),
            },
            firing=firing,
        )
        for run, saved, started, behind, firing in (
            ("resumed-lately", always(0), _HOUR, 0.0, ()),
            ("saved-lately", always(_HOUR), 0.0, 0.0, ()),
            (
                "saves-never",
                always(0),
                0.0,
                150.0,
                (
                    Firing(
                        alert="CheckpointTooOld",
                        since=4 * _HOUR + 120 + 360,
                        says="run saves-never has saved nothing for four hours",
                    ),
                ),
            ),
            ("saved-never-and-stopped", always(0), 0.0, None, ()),
            (
                "saves-never-and-stands-still",
                always(0),
                0.0,
                210.0,
                (
                    Firing(
                        alert="RunStalled",
                        since=120,
                        labels={"node": "n1", "rank": "0", "phase": "computing"},
                        says="run saves-never-and-stands-still does no steps: rank 0 on n1 is "
                        "computing",
                    ),
                    Firing(
                        alert="RunStalled",
                        since=120,
                        labels={"node": "n1", "rank": "1", "phase": "computing"},
                        says="run saves-never-and-stands-still does no steps: rank 1 on n1 is "
                        "computing",
                    ),
                ),
            ),
        )
    ),
    *(
        Case(
            run=run,
            about=("ConversionRejecting",),
            kind="conversion",
            series=conversion(truncated, progress),
            firing=firing,
        )
        for run, truncated, progress, firing in (
            (
                "many-broken-images",
                15,
                clock(),
                (
                    Firing(
                        alert="ConversionRejecting",
                        since=BEGIN + 300,
                        labels={"reason": "truncated"},
                        says="conversion many-broken-images rejects images: truncated",
                    ),
                ),
            ),
            (
                "many-broken-images-slowly",
                15,
                clock(behind=450),
                (
                    Firing(
                        alert="ConversionRejecting",
                        since=BEGIN + 300,
                        labels={"reason": "truncated"},
                        says="conversion many-broken-images-slowly rejects images: truncated",
                    ),
                ),
            ),
            ("few-broken-images", 9, clock(), ()),
            ("conversion-of-yesterday", 15, clock(behind=750), ()),
        )
    ),
)


def explained() -> Iterator[tuple[str, str, Case]]:
    """Each alert, each one that it yields to, and a run with the symptoms of both: it is silent.

    The alert would fire two minutes after the other one. Then the run is gone.
    """
    for alert in ALERTS:
        effect, fires = _first(alert.name)
        for name in alert.yields_to:
            cause, explains = _first(name)
            wait = math.ceil((explains.since - fires.since) / 60) * 60 + 120.0
            if alert.yields_for != "5m":  # it fires long after the other one
                wait = math.ceil((explains.until or explains.since) / 60) * 60 + 120.0 - BEGIN
            later, sooner = max(0.0, wait), max(0.0, -wait)
            begin, look = BEGIN + later, fires.since + later
            series = {key: _later(values, sooner) for key, values in cause.series.items()}
            for key, values in effect.series.items():
                before = series.get(key, healthy().get(key, values))
                series[key] = _from(begin, before, _later(values, later))
            yield (
                alert.name,
                name,
                Case(
                    run=f"{alert.name}-explained-by-{name}",
                    about=(alert.name,),
                    step=effect.step,
                    series={
                        key: gone(values, look + 120)
                        for key, values in (healthy() | series).items()
                    },
                    looks=(look, look + 60),
                ),
            )


def _first(alert: str) -> tuple[Case, Firing]:
    return next((case, each) for case in CASES for each in case.firing if each.alert == alert)


def _later(values: Values, seconds: float) -> Values:
    return lambda t: values(max(0.0, t - seconds))


def _from(begin: float, before: Values, after: Values) -> Values:
    return lambda t: after(t) if t >= begin else before(t)
