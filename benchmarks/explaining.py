"""How long `launch explain` and the report take for a long run: 90 epochs in 20 attempts.

The run is written as training would: a batch of 128 of 1,281,167 images, a row each 50 steps, an
evaluation and a checkpoint each epoch, and attempts of which every other one is killed between two
checkpoints, so that its last rows are void. Each time is that of a whole process, by the clock and
by the processor: other programs of a shared machine count in the former alone.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measurement import parser, report, spread
from pipeline.config.recipes import RECIPES
from pipeline.config.saved import to_json
from pipeline.run.directory import RunDirectory
from pipeline.run.event_rows import row_of
from pipeline.run.events import (
    CheckpointEvent,
    EndEvent,
    EvalEvent,
    Event,
    RunEvent,
    SignalEvent,
    StartEvent,
    TrainEvent,
)
from pipeline.run.phase import PHASE_LABELS

NUM_EPOCHS, NUM_ATTEMPTS, LOG_EVERY = 90, 20, 50
STEPS_PER_EPOCH = 1_281_167 // 128
TARGET = NUM_EPOCHS * STEPS_PER_EPOCH
STEP_SECONDS = 0.05


def attempts() -> Iterator[tuple[int, int, bool]]:
    """First and last step of each, and whether it was killed: then half an epoch is void."""
    begin = 0
    for number in range(1, NUM_ATTEMPTS + 1):
        is_killed = number % 2 == 1 and number < NUM_ATTEMPTS
        saved = NUM_EPOCHS * number // NUM_ATTEMPTS * STEPS_PER_EPOCH
        yield begin, saved + (STEPS_PER_EPOCH // 2 if is_killed else 0), is_killed
        begin = saved


def events() -> Iterator[Event]:
    now = 1.7e9
    for begin, end, is_killed in attempts():
        yield StartEvent(**_at(begin, now), began=now - 20, heard=None)
        yield _start(begin, now + 5)
        for step in range(begin + LOG_EVERY, end + 1, LOG_EVERY):
            now += LOG_EVERY * STEP_SECONDS
            yield _interval(step, now)
            if step % STEPS_PER_EPOCH < LOG_EVERY and step >= STEPS_PER_EPOCH:
                saved = step // STEPS_PER_EPOCH * STEPS_PER_EPOCH
                yield _evaluation(saved, now)
                yield CheckpointEvent(
                    **_at(saved, now),
                    path=f"checkpoints/step-{saved:08d}",
                    num_bytes=500_000_000,
                    seconds=1.0,
                    reason="periodic",
                )
        if not is_killed and end < TARGET:
            yield SignalEvent(**_at(end, now), source="SIGTERM")
            yield EndEvent(**_at(end, now + 5), outcome="stopped")
        now += 600
    error = "rank 3 on node4: lost another rank: it was killed, hangs or its host is gone (x)"
    yield EndEvent(**_at(TARGET, now), outcome="failed", error=error, cause="lost_rank")


def _at(step: int, now: float) -> dict[str, Any]:
    return {"step": step, "epoch": step / STEPS_PER_EPOCH, "time": now}


def _start(step: int, now: float) -> RunEvent:
    return RunEvent(
        **_at(step, now),
        resumed_from=step or None,
        forked_from=None,
        world_size=8,
        local_batch_size=16,
        accumulation_steps=1,
        global_batch_size=128,
        steps_per_epoch=STEPS_PER_EPOCH,
        target_steps=TARGET,
        device="cuda",
        precision="bf16",
        num_train_samples=1_281_167,
        num_val_samples=50_000,
        shard_set="ImageNet",
    )


def _interval(step: int, now: float) -> TrainEvent:
    seconds = LOG_EVERY * STEP_SECONDS / len(PHASE_LABELS)
    return TrainEvent(
        **_at(step, now),
        loss=6.9 - 4 * step / TARGET,
        top1=0.6 * step / TARGET,
        images_per_second=128 / STEP_SECONDS,
        data_wait_ratio=1 / len(PHASE_LABELS),
        phase_seconds=dict.fromkeys(PHASE_LABELS, seconds),
        grad_norm=1.0,
        learning_rate=0.01,
        skipped_steps=0,
    )


def _evaluation(step: int, now: float) -> EvalEvent:
    correct = 30_000 * step // TARGET
    return EvalEvent(
        **_at(step, now),
        by="train",
        split="val",
        views=1,
        shard_set="ImageNet",
        manifest_sha256="0" * 64,
        own_shards=True,
        top1=correct / 50_000,
        top5=correct / 40_000,
        loss=2.0,
        correct1=correct,
        correct5=correct * 5 // 4,
        seen=50_000,
        expected=50_000,
        seconds=20.0,
    )


def write_run(run: RunDirectory) -> int:
    """Returns the number of rows."""
    lines = [json.dumps(row_of(event)) for event in events()]
    run.events.write_text("\n".join([*lines, ""]))
    run.logs.mkdir()
    (run.logs / "slurm-1.log").write_text(
        "\n".join(["job 1, start 20, on node[1-2]", "alexnet_2012 → run", *lines, ""])
        + "error: rank 5 was killed by SIGKILL; was memory short? 'dmesg' says so\n"
    )
    config = to_json(RECIPES["alexnet_2012"]())
    settings = {"recipe": "alexnet_2012", "config": config, "manifest_sha256": "0" * 64}
    run.config.write_text(json.dumps(settings))
    return len(lines)


def measure(module: str, *arguments: object, n: int) -> tuple[dict[str, Any], str]:
    """Seconds of whole processes, of which one goes before, and what the last one printed."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    wall, cpu, text = [], [], ""
    for _ in range(n + 1):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - begin)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"wall_seconds": spread(wall[1:], 3), "cpu_seconds": spread(cpu[1:], 3)}, text


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repetitions", type=int, default=9)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        num_rows = write_run(run)
        explained, text = measure("launch", "explain", run.path, n=given.repetitions)
        compared, _ = measure("launch", "compare", run.path, run.path, n=given.repetitions)
        status, _ = measure("launch", "status", run.path, n=given.repetitions)
        written, _ = measure("pipeline.report", run.path, n=given.repetitions)
        figures = {
            "what": f"whole commands on a run of {NUM_EPOCHS} epochs in "
            f"{NUM_ATTEMPTS} attempts, {num_rows:,} rows, {run.events.stat().st_size / 1e6:.1f} MB",
            "explain": explained,
            "explain_says": text.partition("\n")[0],
            "status": status,
            "compare_with_itself": compared,
            "report": written,
            "report_bytes": run.report.stat().st_size,
            "goals": {"explain": 1.0, "report": 5.0},
        }
    report(figures, given.json)


if __name__ == "__main__":
    main()
