"""Every alert, declared once: when it fires, what it says, and which other alert explains it.

Longer than 250 lines: a table. `docs/alerts.md` has a paragraph for each.

Two alerts never fire for one cause: an alert is silent while one of those that it yields to fires,
or did so lately. Causes come first, because Prometheus evaluates the rules in this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.timeouts import ALERT_HOLD_MINUTES

Severity = Literal["critical", "warning"]
"""critical: work is being lost, or wrong; warning: it goes on, but somebody should look."""

RUNBOOK = "docs/alerts.md"

_WHO = "run {{ $labels.run }}: rank {{ $labels.rank }} on {{ $labels.node }}"
_RUN = "run {{ $labels.run }}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """Something that a person should act on."""

    name: str
    severity: Severity
    condition: str
    """A query as in `launch.monitoring.records`; its labels are those of the alert."""
    hold: str
    """How long the condition has to hold: the `for` of the rule."""
    summary: str
    """Who and what, in one line; a template of Prometheus, as the description is."""
    description: str
    """The cause as far as it is known, and what is lost."""
    yields_to: tuple[str, ...] = ()
    """Alerts of the same run that explain this one."""
    yields_for: str = "5m"
    """How long they do so after they have fired; not divided, because how a run has ended is served
    for a time that is not, either."""
    is_of_running: bool = True
    """Whether a run is judged only while it runs."""

    @property
    def query(self) -> str:
        """The condition, unless it is explained."""
        query = self.condition
        if self.is_of_running:
            query = f"(\n{query}\n)\nand on (run) alexnet:run_running"
        if self.yields_to:
            fired = f'ALERTS{{alertname=~"{"|".join(self.yields_to)}", alertstate="firing"}}'
            query = f"(\n{query}\n)\nunless on (run) max_over_time({fired}[={self.yields_for}])"
        return query

    @property
    def runbook(self) -> str:
        """Where its paragraph is."""
        return f"{RUNBOOK}#{self.name.lower()}"


def _counted(counter: str, by: str, window: str) -> str:
    """Whether a counter has risen within the window, be it before the first scrape of it."""
    return (
        f"sum by ({by}) (increase({counter}[{window}])) > 0\n"
        f"or sum by ({by}) ({counter} unless {counter} offset {window}) > 0"
    )


ALERTS = (
    Alert(
        name="DiskNearlyFull",
        severity="critical",
        condition="""\
min by (run) (alexnet_disk_free_bytes) < 3 * max by (run) (alexnet_checkpoint_bytes)
or min by (run) (alexnet_disk_free_bytes / alexnet_disk_size_bytes) < 0.02""",
        hold="30s",
        summary=f"{_RUN}: the disk of its checkpoints is nearly full",
        description="{{ $labels.run }} has less room than three checkpoints need, or less than 2 % "
        "of the file system of RUN/checkpoints: the next checkpoint may not be written.",
    ),
    Alert(
        name="ReplicasDiffer",
        severity="critical",
        condition="max by (run, node, rank) (alexnet_replica_differs) == 1",
        hold="0s",
        summary=f"{_WHO} has other weights than the rest",
        description="A bit has flipped, or a device is broken. The run stops before it saves, and "
        "its last checkpoint is good. If two ranks are named, it is undecided which is wrong.",
        is_of_running=False,
    ),
    Alert(
        name="LossNotFinite",
        severity="critical",
        condition=_counted("alexnet_loss_not_finite_total", "run, node, rank", "15m"),
        hold="0s",
        summary=f"{_WHO} has a loss that is not a number",
        description="Training has diverged (then all ranks are named), or the images or the device "
        "of this rank are bad.",
        is_of_running=False,
    ),
    Alert(
        name="CorruptSamples",
        severity="warning",
        condition=_counted("alexnet_loader_sample_failures_total", "run, node, rank", "30m"),
        hold="0s",
        summary=f"{_WHO} has read damaged images",
        description="Others stand in for them, up to data.max_corrupt_ratio. The alarms "
        "damaged_image in events.jsonl name image and shard.",
        is_of_running=False,
    ),
    Alert(
        name="CheckpointFailing",
        severity="critical",
        condition=_counted("alexnet_checkpoint_failures_total", "run, kind", "30m"),
        hold="45s",
        summary=f"{_RUN}: a checkpoint ({{{{ $labels.kind }}}}) could not be written",
        description="A kill costs all work since the last one that was written. The log of rank 0 "
        "says what was wrong.",
        yields_to=("DiskNearlyFull",),
        is_of_running=False,
    ),
    Alert(
        name="HangSuspected",
        severity="critical",
        condition="""\
max by (run, node, rank) (alexnet_rank_up) == 0
and on (run, node, rank) alexnet_rank_outcome{outcome="running", run_dir!=""} == 1""",
        hold=f"{ALERT_HOLD_MINUTES}m",
        summary=f"{_WHO} is there, but publishes nothing",
        description="It is stopped (SIGSTOP), hangs in the system, or cannot write to its run "
        "directory."
        "{{ with printf `alexnet_rank_phase{run=%q,rank=%q} == 1` $labels.run $labels.rank "
        "| query }} When it last spoke it was {{ . | first | label `phase` }}.{{ end }}",
        yields_to=("DiskNearlyFull",),
    ),
    Alert(
        name="RunStalled",
        severity="critical",
        condition="""\
alexnet:rank_busy
and on (run) alexnet:run_stalled
or alexnet:run_stalled
unless on (run) alexnet:rank_busy""",
        hold=f"{ALERT_HOLD_MINUTES}m",
        summary=f"{_RUN} does no steps"
        "{{ with $labels.rank }}: rank {{ . }} on {{ $labels.node }} is {{ $labels.phase }}"
        "{{ end }}",
        description="The last step of {{ $labels.run }} is minutes ago. "
        "{{ if $labels.rank }}Rank {{ $labels.rank }} on {{ $labels.node }} does not wait for "
        "others: it is {{ $labels.phase }} (reading: look at the shards, their disk or server)."
        "{{ else }}All ranks wait for each other: look at the network between them.{{ end }}",
        yields_to=("HangSuspected",),
    ),
    Alert(
        name="RankDead",
        severity="critical",
        condition="""\
max by (run, node, rank) (alexnet_rank_outcome{outcome="killed"}) == 1
unless on (run, node, rank) alexnet_rank_outcome{outcome="running", run_dir!=""} == 1
unless on (run) alexnet:run_starting""",
        hold="0s",
        summary=f"{_WHO} was killed",
        description="kill -9, the kernel's out-of-memory killer, or the end of its host. The other "
        "ranks end with it; work since the last checkpoint is lost.",
        yields_to=("HangSuspected", "RunStalled"),
        is_of_running=False,
    ),
    Alert(
        name="StepsSkipped",
        severity="warning",
        condition="sum by (run) (rate(alexnet_train_steps_skipped_total[10m]))"
        " / sum by (run) (rate(alexnet_train_steps_total[10m])) > 0.05",
        hold="10m",
        summary=f"{_RUN} skips {{{{ $value | humanizePercentage }}}} of its steps",
        description="{{ $value | humanizePercentage }} of the steps of {{ $labels.run }} are not "
        "applied, because their gradients are not finite: the learning rate is too high, or fp16 "
        "too narrow for this network.",
        yields_to=("LossNotFinite",),
    ),
    Alert(
        name="RunFailed",
        severity="critical",
        condition='max by (run, outcome) (alexnet_run_outcome{outcome=~"failed|killed"}) == 1',
        hold="1m",
        summary=f"{_RUN} "
        "{{ if eq $labels.outcome `killed` }}was{{ else }}has{{ end }} {{ $labels.outcome }}",
        description="No other alert says why. Its last event and the end of its log do.",
        yields_to=(
            *("DiskNearlyFull", "ReplicasDiffer", "LossNotFinite", "CorruptSamples"),
            *("CheckpointFailing", "HangSuspected", "RunStalled", "RankDead", "StepsSkipped"),
        ),
        is_of_running=False,
    ),
    Alert(
        name="CheckpointTooOld",
        severity="warning",
        condition="""\
time() - max by (run) (alexnet_checkpoint_last_success_timestamp_seconds) > 4h
and on (run) time() - max by (run) (alexnet_run_start_timestamp_seconds) > 4h
and on (run) alexnet:last_step_age:seconds < 3m""",
        hold="5m",
        summary=f"{_RUN} has saved nothing for four hours",
        description="{{ $labels.run }} trains, and its last checkpoint is "
        "{{ $value | humanizeDuration }} old: a kill would cost as much. Save more often with "
        "--checkpoint.every_epochs.",
        yields_to=("DiskNearlyFull", "CheckpointFailing"),
    ),
    Alert(
        name="NotLearning",
        severity="warning",
        condition="max by (run) (alexnet_not_learning) == 1",
        hold="5m",
        summary=f"{_RUN} does not learn",
        description="Its loss is still that of guessing: an unlucky initialisation, a learning "
        "rate that does not fit, or labels that do not belong to the images.",
        yields_to=("LossNotFinite", "StepsSkipped"),
    ),
    Alert(
        name="Straggler",
        severity="warning",
        condition="""\
label_replace(max by (run, node, rank, phase) (alexnet_straggler) == 1, "of", "rank", "", "")
or label_replace(max by (run) (alexnet_delay_wanders) == 1, "of", "loader", "", "")
or label_replace(max by (run) (alexnet_delay_unattributed) == 1, "of", "unattributed", "", "")""",
        hold="5m",
        summary=f"{_RUN} is slowed down by "
        "{{ if $labels.rank }}rank {{ $labels.rank }} on {{ $labels.node }} ({{ $labels.phase }})"
        "{{ else if eq $labels.of `loader` }}the loader{{ else }}delays that no rank explains"
        "{{ end }}",
        description="{{ if $labels.rank }}The other ranks wait for rank {{ $labels.rank }} on "
        "{{ $labels.node }}, which takes longer in {{ $labels.phase }}."
        "{{ else if eq $labels.of `loader` }}The delay moves from rank to rank: the loader is "
        "slow for all, each at its time.{{ else }}The ranks wait for each other, and no rank "
        "explains it: look at the network between them.{{ end }}",
        yields_to=("HangSuspected", "RunStalled"),
    ),
    Alert(
        name="DataBound",
        severity="warning",
        condition="""\
topk by (run) (1, sum by (run, phase) (alexnet_loader_seconds_total))
and on (run) min by (run) (alexnet:data_wait:ratio5m) > 0.25""",
        hold="10m",
        summary=f"{_RUN}: all ranks wait for data; the limit is to {{{{ $labels.phase }}}} it",
        description="Every rank of {{ $labels.run }} waits for data for more than a quarter of "
        "its time. The readers spend most of theirs to {{ $labels.phase }}"
        "{{ with printf `topk(1, sum by (source) (alexnet_loader_bytes_read_total{run=%q}))` "
        "$labels.run | query }} (reader {{ . | first | label `source` }}; if that is remote, "
        "shards are fetched too slowly){{ end }}.",
        yields_to=("RunStalled", "Straggler"),
    ),
    Alert(
        name="ExporterDown",
        severity="warning",
        condition="""\
max by (run, node) (alexnet_rank_outcome{outcome="running"}) == 1
and on (run, node) max_over_time(up[1d])
unless on (run, node) up == 1""",
        hold="5m",
        summary=f"{_RUN}: its exporter on {{{{ $labels.node }}}} does not answer",
        description="Training goes on unseen: other alerts of this run on this node are blind.",
    ),
    Alert(
        name="PreemptedTooOften",
        severity="warning",
        condition="""\
max by (run) (alexnet_run_preemptions_total) - (
min by (run) (min_over_time(alexnet_run_preemptions_total[6h]))
and on (run) sum by (run) (alexnet:run_seconds:max) > 6h
or max by (run) (alexnet_run_preemptions_total) * 0
) > 2
and on (run) alexnet_run_outcome{outcome=~"running|stopped"} == 1""",
        hold="0s",
        summary=f"{_RUN} was preempted {{{{ $value }}}} times in six hours",
        description="It goes on each time, but starting, loading and queueing cost its time.",
        is_of_running=False,
    ),
    Alert(
        name="GoodputLow",
        severity="warning",
        condition="""\
topk by (run) (1, alexnet:run_seconds:max{class!~"steps|queued"})
and on (run) alexnet:goodput_unqueued:ratio < 0.5
and on (run) sum by (run) (alexnet:run_seconds:max{class!="queued"}) > 2h""",
        hold="15m",
        summary=f"{_RUN} spends less than half its time on steps; most goes to "
        "{{ $labels.class }}",
        description="No other alert says why. The largest part of the rest is "
        "{{ $labels.class }}: {{ $value | humanizeDuration }}.",
        yields_to=(
            *("CheckpointFailing", "HangSuspected", "RunStalled", "RankDead", "RunFailed"),
            *("Straggler", "DataBound", "PreemptedTooOften"),
        ),
        yields_for="1d",
    ),
    Alert(
        name="ConversionRejecting",
        severity="warning",
        condition="""\
topk by (conversion) (1, sum by (conversion, reason) \
(max by (conversion, task, reason) (alexnet_convert_rejected_total)))
and on (conversion) sum by (conversion) \
(max by (conversion, task, reason) (alexnet_convert_rejected_total)) \
> 0.01 * sum by (conversion) (max by (conversion, task) (alexnet_convert_samples_total))
and on (conversion) \
time() - max by (conversion) (alexnet_convert_last_progress_timestamp_seconds) < 10m""",
        hold="5m",
        summary="conversion {{ $labels.conversion }} rejects images: {{ $labels.reason }}",
        description="More than 1 % of the images of conversion {{ $labels.conversion }} are left "
        "out, most because of {{ $labels.reason }} ({{ $value }}).",
        is_of_running=False,
    ),
)
