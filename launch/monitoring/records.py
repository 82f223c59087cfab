"""Recording rules: the questions that alerts, dashboards and people ask again and again.

A duration within brackets is a range; any other, such as the one in `> 3m`, is a number of seconds.
Both are divided by one factor when the rules are rendered.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.timeouts import ALERT_SAVE_MINUTES, ALERT_STALL_MINUTES
from pipeline.run.phase import Phase

_BUSY = "|".join(
    phase.name.lower()
    for phase in Phase
    if not phase.may_wait(is_main=False, is_split=False, is_resident=False)
)
"""What a rank does by itself, while others may wait for it."""

_BUSY_ON_RANK_0 = "|".join(
    phase.name.lower()
    for phase in Phase
    if not phase.may_wait(is_main=True, is_split=False, is_resident=False)
    and phase.may_wait(is_main=False, is_split=False, is_resident=False)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A recording rule: a query under a name of its own."""

    name: str
    query: str
    meaning: str


RECORDS = (
    Record(
        name="alexnet:samples:rate1m",
        query="sum by (run) (rate(alexnet_train_samples_total[1m]))",
        meaning="images per second",
    ),
    Record(
        name="alexnet:data_wait:ratio5m",
        query='sum by (run, node, rank) (rate(alexnet_step_seconds_total{phase="data_wait"}[5m]))'
        " / sum by (run, node, rank) (rate(alexnet_step_seconds_total[5m]))",
        meaning="share of the time spent waiting for data",
    ),
    Record(
        name="alexnet:run_seconds:max",
        query="max by (run, class) (alexnet_run_seconds_total)",
        meaning="the ledger of a run: its seconds by class, whoever serves them",
    ),
    Record(
        name="alexnet:goodput_unqueued:ratio",
        query='sum by (run) (alexnet:run_seconds:max{class="steps"})'
        ' / sum by (run) (alexnet:run_seconds:max{class!="queued"})',
        meaning="share of productive steps of the time that the run was not queued",
    ),
    Record(
        name="alexnet:last_step_age:seconds",
        query="time() - max by (run) (alexnet_last_step_timestamp_seconds)",
        meaning="seconds since the last step",
    ),
    Record(
        name="alexnet:run_running",
        query='max by (run) (alexnet_run_outcome{outcome="running"}) == 1',
        meaning="runs at work",
    ),
    Record(
        name="alexnet:run_starting",
        query="""\
alexnet:run_running
unless on (run) alexnet_rank_outcome{outcome="running"} == 1""",
        meaning="runs at work of which no rank has published yet: all there is of their ranks is "
        "of an attempt before",
    ),
    Record(
        name="alexnet:rank_busy",
        query=f"""\
max by (run, node, rank, phase) (alexnet_rank_phase{{phase=~"{_BUSY}"}}) == 1
or max by (run, node, rank, phase) \
(alexnet_rank_phase{{phase=~"{_BUSY_ON_RANK_0}", rank="0"}}) == 1""",
        meaning="ranks that do not wait for others, and what they do",
    ),
    Record(
        name="alexnet:run_stalled",
        query=f"""\
alexnet:last_step_age:seconds > {ALERT_STALL_MINUTES}m
and on (run) alexnet_rank_up == 1
unless on (run) alexnet_rank_phase{{phase=~"evaluating|gathering|saving"}} == 1
or alexnet:last_step_age:seconds > {ALERT_SAVE_MINUTES}m
and on (run) alexnet_rank_up == 1""",
        meaning="runs whose ranks are there and do no step, for longer if they evaluate or save",
    ),
)
