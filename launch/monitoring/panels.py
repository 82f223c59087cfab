"""What the dashboards show, declared as questions.

`_` is the range of a rate. Each metric is asked for the runs, nodes and ranks that are chosen; what
a panel says of itself follows from the metrics that it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

Kind = Literal["timeseries", "stat", "table", "state-timeline", "bargauge"]


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of a dashboard; `unit` is as Grafana calls it."""

    kind: Kind
    title: str
    unit: str
    queries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels; `name` is that of its file and of its address in Grafana."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    variables: tuple[str, ...]


def _panel(kind: Kind, title: str, unit: str, *queries: str) -> Panel:
    return Panel(kind, title, unit, queries)


_graph = partial(_panel, "timeseries")
_number = partial(_panel, "stat")
_table = partial(_panel, "table")
_bars = partial(_panel, "bargauge")


def _states(title: str, *queries: str) -> Panel:
    return _panel("state-timeline", title, "none", *queries)


def _of_run(name: str, *more: str) -> str:
    """A value of the whole run, whoever serves it."""
    return f"max by ({', '.join(('run', *more))}) (alexnet_{name})"


def _of_rank(name: str, *more: str) -> str:
    return f"max by ({', '.join(('run', 'node', 'rank', *more))}) (alexnet_{name})"


def _rate(name: str, *by: str) -> str:
    """What is added a second, summed over all else."""
    return f"sum by ({', '.join(by)}) (rate(alexnet_{name}[_]))"


_RANK = ("run", "node", "rank")
_STEPS = "max by (run, node, rank) (rate(alexnet_train_steps_total[_]))"


def _per_step(phases: str) -> str:
    """The seconds that each rank spends in them, in a step."""
    return f"{_rate(f'step_seconds_total{{{phases}}}', *_RANK)} / {_STEPS}"


_IMAGES = "suffix: images/s"
_OUTCOME = _states("How runs stand", f"{_of_run('run_outcome', 'outcome')} == 1")
_SPEED = _graph("Images per second", _IMAGES, "alexnet:samples:rate1m")
_LAST_STEP = _number("Since the last step", "s", "alexnet:last_step_age:seconds")
_SAVED = _number(
    "Since the last checkpoint",
    "s",
    f"time() - ({_of_run('checkpoint_last_success_timestamp_seconds')} > 0)",
)
_BEST = _bars("Best accuracy", "percentunit", _of_run("best_eval_accuracy_ratio", "k"))
_GOODPUT = _graph("Goodput", "percentunit", _of_run("goodput_ratio"))
_SKIPPED = _graph("Skipped steps", "short", _of_run("train_steps_skipped_total"))
_ATTEMPTS = _number("Attempts", "short", _of_run("run_attempts_total"))

_RUN = (
    _OUTCOME,
    _number("Progress", "percentunit", f"{_of_run('epoch')} / {_of_run('target_epochs')}"),
    _number(
        "Time left, at this speed",
        "s",
        f"({_of_run('target_epochs')} - {_of_run('epoch')}) * {_of_run('steps_per_epoch')}"
        f" / max by (run) ({_STEPS})",
    ),
    _LAST_STEP,
    _SAVED,
    _ATTEMPTS,
    _SPEED,
    _graph("Loss", "none", _of_run("train_loss"), _of_run("eval_loss", "split")),
    _graph(
        "Accuracy",
        "percentunit",
        _of_run("train_accuracy_ratio"),
        _of_run("eval_accuracy_ratio", "split", "k"),
    ),
    _BEST,
    _graph("Learning rate", "sci", _of_run("learning_rate")),
    _graph("Norm of the gradients", "none", _of_run("train_grad_norm")),
    _graph("Loss scale of fp16", "sci", _of_run("grad_scale")),
    _SKIPPED,
)

_TIME = (
    _bars("Every second of the run, by class", "s", "alexnet:run_seconds:max"),
    _GOODPUT,
    _graph(
        "Phases of a step",
        "s",
        f"{_rate('step_seconds_total', 'run', 'phase')}"
        f" / on (run) group_left () sum by (run) ({_STEPS})",
    ),
    _graph("Waiting for data", "percentunit", "alexnet:data_wait:ratio5m"),
    _graph(
        "Duration of a step: mean, 99 %",
        "s",
        f"{_rate('step_duration_seconds_sum', 'run')}"
        f" / {_rate('step_duration_seconds_count', 'run')}",
        f"histogram_quantile(0.99, {_rate('step_duration_seconds_bucket', 'run', 'le')})",
    ),
    _graph("Time of the readers", "s", _rate("loader_seconds_total", "run", "phase")),
    _graph("Images read", _IMAGES, _rate("loader_samples_total", "run", "source")),
    _graph("Bytes read", "Bps", _rate("loader_bytes_read_total", "run", "source")),
    _graph("Batches ahead", "suffix: batches", _of_rank("loader_queue_batches")),
    _graph(
        "Saving a checkpoint: writing, steps waiting",
        "s",
        f"{_of_run('checkpoint_duration_seconds_sum')}"
        f" / {_of_run('checkpoint_duration_seconds_count')}",
        f"{_of_run('checkpoint_wait_seconds_total')}"
        f" / {_of_run('checkpoint_duration_seconds_count')}",
    ),
)

_RANKS = (
    _states("Ranks that publish", _of_rank("rank_up")),
    _states("What they do", f"{_of_rank('rank_phase', 'phase')} == 1"),
    _states(
        "Stragglers",
        _of_rank("straggler", "phase"),
        _of_run("delay_wanders"),
        _of_run("delay_unattributed"),
    ),
    _graph("A step's own work", "s", _per_step('phase!="sync_wait"')),
    _graph("A step's waiting for other ranks", "s", _per_step('phase="sync_wait"')),
    _graph("Losses that are no number", "short", _of_rank("loss_not_finite_total")),
    _states("Replicas that differ", _of_rank("replica_differs")),
    _graph("Replicas compared", "short", _of_run("fingerprints_total")),
    _graph(
        "GPU memory",
        "bytes",
        _of_rank("gpu_memory_allocated_bytes"),
        _of_rank("gpu_memory_reserved_peak_bytes"),
    ),
    _graph("GPU power", "watt", _rate("gpu_energy_joules_total", *_RANK)),
    _table("GPUs", "none", "alexnet_gpu_info"),
)

_RUNS = (
    _table("What they train", "none", "alexnet_run_info"),
    _BEST,
    _graph("Loss", "none", _of_run("train_loss")),
    _graph("Accuracy", "percentunit", _of_run('eval_accuracy_ratio{k="1"}')),
    _SPEED,
    _graph(
        "Images per second and rank",
        _IMAGES,
        f"alexnet:samples:rate1m / {_of_run('world_size_ranks')}",
    ),
    _GOODPUT,
    _bars("Samples of a step", "short", _of_run("global_batch_samples")),
    _bars("GPU energy", "joule", "sum by (run) (alexnet_gpu_energy_joules_total)"),
    _ATTEMPTS,
    _table("Software", "none", "alexnet_build_info"),
)

_CONVERSION = (
    _number(
        "Progress",
        "percentunit",
        "sum by (conversion) (alexnet_convert_samples_total)"
        " / sum by (conversion) (alexnet_convert_expected_samples)",
    ),
    _number(
        "Since the last sample",
        "s",
        "time() - max by (conversion) (alexnet_convert_last_progress_timestamp_seconds)",
    ),
    _graph("Samples per second", _IMAGES, _rate("convert_samples_total", "conversion")),
    _graph("Bytes written", "Bps", _rate("convert_bytes_written_total", "conversion")),
    _graph(
        "Left out, by reason",
        "short",
        "sum by (conversion, reason) (alexnet_convert_rejected_total)",
    ),
    _graph("Time of all processes", "s", _rate("convert_seconds_total", "conversion", "stage")),
)

_ON_CALL = (
    _table("Alerts", "none", 'ALERTS{alertstate="firing"}'),
    _OUTCOME,
    _states("How ranks stand", f"{_of_rank('rank_outcome', 'outcome')} == 1"),
    _states("Exporters that answer", "max by (run, node) (up)"),
    _LAST_STEP,
    _SAVED,
    _number("Preemptions", "short", _of_run("run_preemptions_total")),
    _number(
        "Space left for checkpoints",
        "percentunit",
        "min by (run) (alexnet_disk_free_bytes / alexnet_disk_size_bytes)",
    ),
    _graph("Checkpoints not written", "short", _of_run("checkpoint_failures_total", "kind")),
    _graph("Damaged images", "short", _of_rank("loader_sample_failures_total")),
    _SKIPPED,
    _states("Runs that only guess", _of_run("not_learning")),
    _graph(
        "Metrics not written",
        "short",
        _of_rank("metrics_publish_failures_total"),
        _of_run("exporter_damaged_files_total", "node"),
    ),
)

_FOR_RUNS = ("run", "node", "rank")
DASHBOARDS = (
    Dashboard("alexnet-run", "AlexNet: a run", _RUN, _FOR_RUNS),
    Dashboard("alexnet-time", "AlexNet: where the time goes", _TIME, _FOR_RUNS),
    Dashboard("alexnet-ranks", "AlexNet: ranks and stragglers", _RANKS, _FOR_RUNS),
    Dashboard("alexnet-runs", "AlexNet: runs compared", _RUNS, _FOR_RUNS),
    Dashboard("alexnet-conversion", "AlexNet: conversions", _CONVERSION, ("conversion",)),
    Dashboard("alexnet-on-call", "AlexNet: on call", _ON_CALL, _FOR_RUNS),
)
