"""What the tests of training share: a small shard set, command lines, and looks at a run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import hash_class_names, read_manifest
from pipeline.data.order.partition import BatchPlan
from pipeline.metrics.rank_file import rank_file_name, read_writer
from pipeline.optim.replica import Replica
from pipeline.ranks.stop import StopSignals
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import read_events, read_rows
from pipeline.run.event_rows import row_of
from pipeline.train.__main__ import train as train_as_rank
from pipeline.train.command import parse_command
from pipeline.train.survival import Memory
from tests.pipeline.monitoring import REPOSITORY, free_port, wait_for
from tests.pipeline.rank_jobs import Job, replaced
from tests.pipeline.worlds import SINGLE

NUM_TRAIN = 200
NUM_VAL = 53
SAMPLES_PER_SHARD = 40
GLOBAL_BATCH = 24
STEPS_PER_EPOCH = NUM_TRAIN // GLOBAL_BATCH
PLAN_OF_TWO = BatchPlan(
    num_samples=NUM_TRAIN,
    global_batch_size=GLOBAL_BATCH,
    num_replicas=2,
    accumulation_steps=1,
    drop_last=True,
)
"""Of two ranks."""

TRAIN = "pipeline.train"
LONG = ["--epochs", 20_000, "--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0]
"""Options of a run that a test ends: it would take an hour."""

Keeper = Literal["torchrun", "rank 0"]


def make_shards(path: Path) -> Path:
    """Through the real conversion: 5 shards of `train`, 2 of `val`."""
    sizes = ("--num-train", NUM_TRAIN, "--num-val", NUM_VAL)
    options = ("--encoding", "jpeg", "--samples-per-shard", SAMPLES_PER_SHARD, "--workers", 1)
    return shard_synthetic(path, *sizes, *options)


def make_large_shards(
    path: Path, num_train: int, num_val: int, samples_per_shard: int = 1000
) -> Path:
    """Of images large enough for every network."""
    sizes = ("--num-train", num_train, "--num-val", num_val, "--size", 230)
    return shard_synthetic(path, *sizes, "--samples-per-shard", samples_per_shard)


def shard_synthetic(path: Path, *options: object) -> Path:
    command = [sys.executable, "-m", "data_prep", "shard", "synthetic", "--output", str(path)]
    command += [str(option) for option in options]
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    return path


def flip_bit(shards: Path, split_name: str, sample: int) -> str:
    """In the middle of an image; returns the member's name."""
    split = read_manifest(shards).split(split_name)
    row = read_index(shards, split)[sample]
    with (shards / split.filenames[row["shard"]]).open("r+b") as file:
        file.seek(int(row["offset"]) - 512)
        name: str = file.read(100).rstrip(b"\0").decode()
        file.seek(int(row["offset"]) + int(row["num_bytes"]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    return name


def rewrite_manifest(shards: Path, path: Path, mean: float | None = None, **fields: object) -> Path:
    """The same files with other `fields` in their manifest, and another mean of their pixels."""
    shutil.copytree(shards, path)
    manifest = json.loads((path / "_info.json").read_bytes()) | fields
    manifest["class_names_sha256"] = hash_class_names(tuple(manifest["class_names"]))
    if mean is not None:
        manifest["statistics"]["mean"] = [mean] * 3
    (path / "_info.json").write_text(json.dumps(manifest))
    return path


def training(shards: Path, run: Path, *options: object) -> list[str]:
    """Arguments of `pipeline.train`: a log line every step, evaluations and saves now and then."""
    words = ["cifar10", "--data.shards", shards, "--run-dir", run]
    if "--metrics.enabled" not in options:
        words += ["--metrics.exporter", "false"]
    words += ["--global_batch_size", GLOBAL_BATCH, "--log_every_steps", 1, "--epochs", 3]
    words += ["--evaluation.every_epochs", 1, "--evaluation.block_size", 16]
    words += ["--checkpoint.every_epochs", 0.5, "--schedule.warmup_ratio", 0.15]
    return [str(word) for word in replaced([*words, *options])]


def train(
    size: int, shards: Path, run: Path, *options: object, before: Callable[[], None] | None = None
) -> Job:
    return Job(size, TRAIN, training(shards, run, *options), before=before)


def finish(size: int, shards: Path, run: Path, *options: object) -> Job:
    """A job that does all that it is asked."""
    with train(size, shards, run, *options) as job:
        assert job.wait() == [0] * size, job.errors
    return job


def stand_still(rank: int, num_steps: int) -> None:
    """In each rank of a job that a test kills: let `rank` stand still after so many steps.

    However late the kill comes, the run is not over; the other ranks wait for that one.
    """
    plain, times = Replica.update, itertools.count()

    def update(replica: Replica, **options: Any) -> Any:
        if next(times) == num_steps:
            threading.Event().wait()
        return plain(replica, **options)

    if int(os.environ.get("RANK", "0")) == rank:
        mock.patch.object(Replica, "update", update).start()


def fail(job: Job) -> str:
    """The last line of what rank 0 tells of a job that fails on every rank."""
    with job:
        assert job.wait() == [1] * len(job.processes)
    assert "Traceback" not in "".join(job.errors)
    *_, sentence = job.errors[0].splitlines()
    assert sentence.startswith("error: ")
    return sentence


def train_here(shards: Path, run: Path, *options: object) -> int:
    """Train in this process, where a test can replace functions; returns the exit code."""
    command = parse_command(training(shards, run, "--metrics.enabled", "false", *options))
    return train_as_rank(command, SINGLE, mock.Mock(spec=StopSignals, noted=None), Memory())


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a kind in the run's one history."""
    path = RunDirectory(run).events
    found = [row_of(event) for event in read_events(path)]
    return [row for row in found if row["kind"] == kind]


def all_rows(run: Path) -> list[dict[str, Any]]:
    """All events, those too that a resume has made void."""
    path = RunDirectory(run).events
    return [row_of(event) for event in read_rows(path)]


def wait_for_step(run: Path, step: int, attempt: int = 1) -> None:
    """Until the run's attempt of that number, from 1, has done `step`."""

    def is_done() -> bool:
        is_on = len(rows(run, "run")) >= attempt
        return is_on and any(row["step"] >= step for row in rows(run, "train"))

    wait_for(is_done, f"step {step}")


def wait_for_metrics(run: Path, job: Job) -> None:
    """Until each rank of the job, and not only one before it, has said in a file who it is."""

    def have_published() -> bool:
        try:
            found = [pid_of(run, rank) for rank in range(len(job.processes))]
        except FileNotFoundError:
            return False
        return found == [process.pid for process in job.processes]

    wait_for(have_published, "the metrics of all ranks")


def pid_of(run: Path, rank: int) -> int:
    """Of the process that publishes the rank's metrics."""
    return read_writer(RunDirectory(run).metrics / rank_file_name(rank)).pid


def newest_step(run: Path) -> int:
    path = checkpoint.newest_good(RunDirectory(run).checkpoints)
    return 0 if path is None else checkpoint.step_of(path)


def losses(run: Path) -> list[float]:
    """Of the log intervals."""
    return [row["loss"] for row in rows(run, "train")]


def newest_state(run: Path) -> dict[str, Any]:
    path = checkpoint.newest_good(RunDirectory(run).checkpoints)
    assert path is not None
    return checkpoint.load(path)


def assert_same_state(run: Path, expected: Path) -> None:
    """Weights, optimizer, scaler and progress bit for bit."""
    found, wanted = newest_state(run), newest_state(expected)
    for state in (found, wanted):
        del state["settings"]
    assert_equal(found, wanted, "state")
    assert found["progress"]["step"] > 0


def assert_equal(found: Any, wanted: Any, name: str) -> None:
    """Tensors bit for bit and laid out alike, plain values as they are."""
    assert type(found) is type(wanted), name
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), name
        for key, value in wanted.items():
            assert_equal(found[key], value, f"{name}.{key}")
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), name
        assert found.stride() == wanted.stride(), name
    else:
        assert found == wanted, name


@contextlib.contextmanager
def torchrun(
    size: int,
    module: str,
    arguments: list[str],
    logs: Path,
    max_restarts: int = 0,
    *,
    keeper: Keeper = "torchrun",
) -> Iterator[subprocess.Popen[str]]:
    """A job that torchrun starts; no process of it outlives the block.

    Its standard output and error are one stream, those of the ranks lie in `logs`. `keeper` keeps
    the job's store: torchrun by default, rank 0 in the jobs of `python -m launch`.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={size}"]
    meeting = "--standalone" if keeper == "rank 0" else f"--master_port={free_port()}"
    command += [meeting, f"--max-restarts={max_restarts}", "--log_dir", str(logs), "--tee", "3"]
    with subprocess.Popen(
        [*command, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": str(int(keeper == "rank 0"))},
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            for pid in ranks_of(child).values():
                _kill(pid)
            child.kill()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def ranks_of(child: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of torchrun's ranks."""
    found = {}
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(b"RANK="):
                    found[int(entry.removeprefix(b"RANK="))] = int(pid)
    return found


def rank_log(logs: Path, rank: int, stream: str, attempt: int = 0) -> str:
    (path,) = logs.glob(f"*/attempt_{attempt}/{rank}/{stream}.log")
    return path.read_text()
