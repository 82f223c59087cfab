"""Every metric of `pipeline`, each declared once.

Longer than 250 lines: a table. Whoever publishes a metric makes its family from
the constant here; `docs/metrics.md`, rules, alerts and dashboards derive from it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from data_prep.shard_set.metric import Kind, Metric, Origin, Summed
from pipeline.config.data import READERS
from pipeline.run.ending import RUN_OUTCOMES
from pipeline.run.events import CheckpointReason
from pipeline.run.ledger import SECOND_CLASSES
from pipeline.run.phase import PHASE_LABELS, Phase

_CHECKPOINTS = get_args(CheckpointReason)
"""Why one is written."""

LOADER_PHASES = ("read", "decode")

PHASES = tuple(phase.name.lower() for phase in Phase)
"""What a rank may be doing, as `alexnet_rank_phase` has it."""

_Values = Sequence[str] | None

_STEP_BUCKETS = tuple(round(0.002 * 2 ** (quarter / 4), 5) for quarter in range(57))
"""Four for each doubling from 2 ms to 33 s, so that a quantile is right to 19 % at worst.

Half as many would double that error. Twice as many would be more series than all others of the job
together, and most of them empty.
"""


def _metric(
    kind: Kind,
    origin: Origin,
    name: str,
    meaning: str,
    use: str,
    summed: Summed,
    labels: dict[str, _Values],
) -> Metric:
    return Metric(
        name=f"alexnet_{name}",
        kind=kind,
        help=meaning,
        use=use,
        origin=origin,
        summed=summed,
        labels=labels,
    )


def _rank(
    kind: Kind, name: str, meaning: str, use: str, summed: Summed, /, **more: _Values
) -> Metric:
    labels = {"rank": None, "local_rank": None, **more}
    return _metric(kind, "rank", name, meaning, use, summed, labels)


def _count(name: str, meaning: str, use: str, /, **more: _Values) -> Metric:
    """A counter of which each rank counts its own part."""
    return _rank("counter", name, meaning, use, "sum over ranks", **more)


def _job(kind: Kind, name: str, meaning: str, use: str, /, **labels: _Values) -> Metric:
    return _metric(kind, "job", name, meaning, use, "one a job", labels)


def _exporter(
    kind: Kind, name: str, meaning: str, use: str, summed: Summed, /, **labels: _Values
) -> Metric:
    return _metric(kind, "exporter", name, meaning, use, summed, labels)


# fmt: off

# Of each rank.

TRAIN_SAMPLES = _count("train_samples_total", "Samples of all steps, applied or skipped",
    "images per second")
TRAIN_STEPS = _rank("counter", "train_steps_total", "Steps, applied or skipped", "steps per second",
    "max over ranks")
STEPS_SKIPPED = _rank("counter", "train_steps_skipped_total",
    "Steps not applied because gradients were not finite",
    "unstable training, or a loss scale that is too high", "max over ranks")
STEP_SECONDS = _count("step_seconds_total", "Wall time of the steps; the phases sum to all of it",
    "where the time goes, and who is slow", phase=tuple(PHASE_LABELS))
STEP_DURATION = Metric(name="alexnet_step_duration_seconds", kind="histogram",
    help="Wall time of a step; rank 0 stands for all, because they step together; four buckets "
    "for each doubling from 2 ms to 33 s, so that a quantile is right to 19 %",
    use="mean and quantiles of a step", origin="rank", summed="one a job", buckets=_STEP_BUCKETS)
RANK_OUTCOME = _rank("gauge", "rank_outcome", "1 for how the rank stands, else 0",
    "who was killed, and who failed", "max over servers", outcome=RUN_OUTCOMES)
RANK_PHASE = _rank("gauge", "rank_phase",
    "1 for what the rank was doing when it last published, else 0", "where a run stands still",
    "not at all", phase=PHASES)
LAST_STEP = _rank("gauge", "last_step_timestamp_seconds",
    "When the last step ended; absent before the first", "stalled runs", "max over ranks")
HEARTBEAT = _rank("gauge", "heartbeat_timestamp_seconds", "When the rank last published",
    "how old its other values are", "min over ranks")
PUBLISH_FAILURES = _count("metrics_publish_failures_total",
    "Times the metrics could not be written", "a full disk below the run directory")
STRAGGLER = _rank("gauge", "straggler",
    "1 while the others wait for this rank, in the phase that takes it longer, else 0",
    "who is slow, and at what", "max over ranks", phase=tuple(PHASE_LABELS))
LOSS_NOT_FINITE = _count("loss_not_finite_total",
    "Log intervals in which the rank's own loss was not finite",
    "which rank's images or device spoil the loss")
REPLICA_DIFFERS = _rank("gauge", "replica_differs",
    "1 if the weights of this rank are not those of the others, else 0",
    "flipped bits and broken devices", "max over ranks")
GPU_MEMORY_ALLOCATED = _rank("gauge", "gpu_memory_allocated_bytes",
    "GPU memory that tensors hold; 0 on a CPU", "whether a larger batch fits", "max over ranks")
GPU_MEMORY_PEAK = _rank("gauge", "gpu_memory_reserved_peak_bytes",
    "Most GPU memory the allocator has held", "how near the run came to the end of memory",
    "max over ranks")
GPU_INFO = _rank("info", "gpu_info",
    "The GPU that the rank computes on, by its UUID and number on the host; always 1; absent on a "
    "CPU", "joined with the series of DCGM", "not at all", gpu_uuid=None, gpu_index=None)
GPU_ENERGY = _count("gpu_energy_joules_total",
    "Energy of the whole GPU since the rank began, by NVML; absent where that has no counter",
    "what a run costs")
LOADER_SAMPLES = _count("loader_samples_total", "Samples read and decoded, by reader",
    "reading speed", source=READERS)
LOADER_BYTES = _count("loader_bytes_read_total", "Encoded bytes read, by reader",
    "load of the disk", source=READERS)
LOADER_SECONDS = _count("loader_seconds_total",
    "Reader time, summed over its threads; augmentation runs on the device",
    "whether reading or decoding is the limit", phase=LOADER_PHASES)
SAMPLE_FAILURES = _count("loader_sample_failures_total",
    "Damaged samples that another one stood in for", "damage of the shard set, or of a disk")
LOADER_QUEUE = _rank("gauge", "loader_queue_batches", "Batches ready ahead of need",
    "a reader that falls behind, before the steps wait for it", "min over ranks")

# Of the job.

TRAIN_LOSS = _job("gauge", "train_loss", "Mean loss of the log interval", "learning")
TRAIN_ACCURACY = _job("gauge", "train_accuracy_ratio", "Top-1 accuracy of the log interval",
    "learning")
GRAD_NORM = _job("gauge", "train_grad_norm",
    "Norm of the gradients of the log interval's last step, before they are clipped",
    "training that becomes unstable")
LEARNING_RATE = _job("gauge", "learning_rate", "Learning rate", "the schedule as it is")
GRAD_SCALE = _job("gauge", "grad_scale", "Loss scale of fp16 training",
    "one that falls: gradients overflow")
NOT_LEARNING = _job("gauge", "not_learning",
    "1 while the loss is within 0.5 % of ln(classes), that of guessing, after "
    "`not_learning_after_samples`; else 0", "runs that waste their time")
DELAY_WANDERS = _job("gauge", "delay_wanders", "1 while the delay moves from rank to rank, else 0",
    "a loader that is slow for all, each at its time")
DELAY_UNATTRIBUTED = _job("gauge", "delay_unattributed",
    "1 while ranks wait for each other and no rank explains it, else 0",
    "delays that have another cause, such as the network")
FINGERPRINTS = _job("counter", "fingerprints_total", "Comparisons of the replicas' weights",
    "whether they are compared at all")
GLOBAL_STEP = _job("gauge", "global_step", "Steps done in the life of the run", "progress")
EPOCH = _job("gauge", "epoch", "Epochs done in the life of the run, with the fraction",
    "progress; time left")
EVAL_LOSS = _job("gauge", "eval_loss", "Mean loss of the last evaluation", "overfitting",
    split=("val",))
EVAL_ACCURACY = _job("gauge", "eval_accuracy_ratio",
    "Top-1 and top-5 accuracy of the last evaluation; no top-5 with five classes or fewer",
    "how good the network is", split=("val",), k=("1", "5"))
BEST_ACCURACY = _job("gauge", "best_eval_accuracy_ratio",
    "The highest accuracy of an evaluation so far", "how good the best checkpoint is",
    split=("val",), k=("1", "5"))
EVAL_SAMPLES = _job("gauge", "eval_samples", "Samples that the last evaluation counted",
    "whether each was counted once", split=("val",))
EVAL_EXPECTED = _job("gauge", "eval_expected_samples", "Samples of the split",
    "what `alexnet_eval_samples` must be", split=("val",))
EVAL_SUCCESS = _job("gauge", "eval_last_success_timestamp_seconds",
    "When an evaluation last ended; 0 before", "evaluations that no longer happen", split=("val",))
CHECKPOINTS = _job("counter", "checkpoints_total", "Checkpoints tried", "how often one is made",
    kind=_CHECKPOINTS)
CHECKPOINT_FAILURES = _job("counter", "checkpoint_failures_total", "Checkpoints not written",
    "a disk that is full or gone", kind=_CHECKPOINTS)
CHECKPOINT_DURATION = Metric(name="alexnet_checkpoint_duration_seconds", kind="histogram",
    help="Time to write a checkpoint, in the background or not", use="how fast the disk is",
    origin="job", summed="one a job", buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300))
CHECKPOINT_WAIT = _job("counter", "checkpoint_wait_seconds_total",
    "Time that steps waited for checkpoints", "what saving costs")
CHECKPOINT_SUCCESS = _job("gauge", "checkpoint_last_success_timestamp_seconds",
    "When a checkpoint was last written; 0 before", "how much work a kill would lose")
CHECKPOINT_STEP = _job("gauge", "checkpoint_last_step", "Step of the last checkpoint",
    "where a resume would begin")
CHECKPOINT_BYTES = _job("gauge", "checkpoint_bytes", "Size of the last checkpoint", "disk space")
STEPS_PER_EPOCH = _job("gauge", "steps_per_epoch", "Steps of one epoch", "progress in epochs")
TARGET_EPOCHS = _job("gauge", "target_epochs", "Epochs of the whole run", "progress; time left")
GLOBAL_BATCH = _job("gauge", "global_batch_samples", "Samples of one step on all ranks",
    "runs compared")
WORLD_SIZE = _job("gauge", "world_size_ranks", "Ranks of the job", "ranks that do not report")
RESUMES = _job("counter", "resumes_total", "Times the run was resumed, by its `events.jsonl`",
    "restarts")
PREEMPT_SIGNALS = _job("counter", "preempt_signals_total", "Stop requests heeded", "preemptions")
RUN_START = _job("gauge", "run_start_timestamp_seconds", "When this attempt began", "restarts")
RUN_END = _job("gauge", "run_end_timestamp_seconds", "When it ended; 0 before", "what is over")
RUN_DURATION = _job("gauge", "run_duration_seconds", "How long it took; 0 before", "its cost")
BUILD_INFO = _job("info", "build_info", "Versions of the software; always 1", "runs compared",
    **dict.fromkeys(("version", "torch", "cuda")))
RUN_INFO = _job("info", "run_info",
    "What is trained, on what; always 1; `dataset` is the shard set's name, or else what it holds",
    "runs compared",
    **dict.fromkeys(("recipe", "model", "columns", "precision", "dataset", "manifest_sha8")),
    **dict.fromkeys(("git_revision", "gpu_name")))

# Of the exporter.

RANK_UP = _exporter("gauge", "rank_up", "1 while the rank's process runs and publishes",
    "ranks that are gone or silent", "not at all", rank=None, local_rank=None)
RUN_OUTCOME = _exporter("gauge", "run_outcome",
    "1 for how the run stands, else 0; from the exporter of rank 0's node",
    "runs that failed or were killed", "max over servers", outcome=RUN_OUTCOMES)
RUN_SECONDS = _exporter("counter", "run_seconds_total",
    "Each second since the run was submitted, in one class; all attempts count. A resume takes "
    "seconds away from others and gives them to `lost`: use totals, not rates",
    "where the hours went", "max over servers", **{"class": tuple(SECOND_CLASSES)})
GOODPUT = _exporter("gauge", "goodput_ratio",
    "The share of these seconds that went to steps which stay done",
    "what waiting, restarts and lost work cost", "max over servers")
RUN_ATTEMPTS = _exporter("counter", "run_attempts_total", "Process groups that the run has had",
    "restarts that come too often", "max over servers")
RUN_PREEMPTIONS = _exporter("counter", "run_preemptions_total",
    "Times the run was asked to stop as clusters do: by SIGTERM, SIGUSR1, SIGUSR2, or the end of "
    "torchrun", "a queue that preempts too often", "max over servers")
EXPORTER_INFO = _exporter("info", "exporter_info", "Whose metrics these are; always 1",
    "a target that leads to the wrong exporter", "one a node",
    **dict.fromkeys(("served_run", "served_run_dir", "served_node")))
DISK_FREE = _exporter("gauge", "disk_free_bytes",
    "Space that is left for the run's checkpoints; from the exporter of rank 0's node",
    "a disk that is nearly full", "max over servers")
DISK_SIZE = _exporter("gauge", "disk_size_bytes",
    "Size of the file system of the run's checkpoints; from the exporter of rank 0's node",
    "the share that is left", "max over servers")
DAMAGED_FILES = _exporter("counter", "exporter_damaged_files_total",
    "Times a damaged rank file was left out of a scrape",
    "a full disk, or a writer of another version", "one a node")

# fmt: on

METRICS = tuple(each for each in tuple(globals().values()) if isinstance(each, Metric))
"""All of them."""

RANK_METRICS = tuple(metric for metric in METRICS if metric.origin == "rank")
JOB_METRICS = tuple(metric for metric in METRICS if metric.origin == "job")
EXPORTER_METRICS = tuple(metric for metric in METRICS if metric.origin == "exporter")

LEDGER_METRICS = (RUN_SECONDS, GOODPUT, RUN_ATTEMPTS, RUN_PREEMPTIONS)

ROOT_METRICS = (RUN_OUTCOME, RANK_OUTCOME, DISK_FREE, DISK_SIZE, *LEDGER_METRICS)
"""What `launch prometheus` serves for all runs of a root, with the label `run` and, for ranks,
`node`."""
