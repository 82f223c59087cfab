"""All that is to be known from a GPU that is there for a few minutes.

    python -m benchmarks.gpu --json PATH [--minutes 5] [--only PART …]
        [--cifar10 DIR] [--images DIR] [--dry-run]

It needs torch, Triton and this repository. The parts, the most important first:

    tests     the checks of the tests that are marked gpu
    steps     the step table, beside eager PyTorch and torchvision's alexnet
    kernels   each beside its roofline
    resident  ImageNet's planes in the GPU's memory, end to end
    cifar10   CIFAR-10 to its accuracy
    feeding   training from each reader
    ranks     what two GPUs do together

Each runs in a process of its own until its deadline, so that one that crashes, hangs or has too
little memory costs itself alone. Time that a part leaves goes to those behind it. PATH is whole at
any time, and says of each part what it found, what was left out and why; what a part had found
when it or this command was ended counts. After SIGKILL the figures of the part that ran then lie
in the folder .PATH.parts.

Where a limit ends the command, such as a job's, let it be 30 s above --minutes or more.

DIR of --cifar10 is the official Python archive of CIFAR-10 or the folder unpacked from it, or has
train/CLASS/* and test/CLASS/*. DIR of --images has JPEGs, such as the
1,000 of the ImageNet sample.

--dry-run does all of it on the CPU with tiny sizes: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.gpu import machine
from benchmarks.gpu.parts import PARTS, Asked, run_part
from benchmarks.gpu.results import Outcome, write
from benchmarks.measurement import environment
from benchmarks.memory import tree

_LOG_LINES = 15


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, metavar="PATH")
    parser.add_argument("--minutes", type=float, default=5.0, metavar="N")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--cifar10", type=Path, metavar="DIR")
    parser.add_argument("--images", type=Path, metavar="DIR")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= 24 * 60:
        parser.error(f"--minutes is {options.minutes:g}; expected more than 0, at most a day")
    if not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
    for name in ("cifar10", "images"):
        given = getattr(options, name)
        if given is not None and not given.exists():
            parser.error(f"--{name} {given}: there is nothing of that name")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if a part failed, it was ended or nothing could be measured."""
    begin = time.monotonic() - machine.age()
    options = options_of(arguments)
    if not options.dry_run and (fault := machine.fault()) is not None:
        sys.stderr.write(
            f"error: {fault}; --dry-run does all of this on the CPU, with tiny sizes\n"
        )
        return 1
    figures: dict[str, Any] = {
        "claim": "what this GPU does in each part; a dry run's figures mean nothing",
        **environment(),
        **({} if options.dry_run else machine.facts()),
        "is_dry_run": options.dry_run,
        "minutes": options.minutes,
        "parts": {name: {"outcome": "not started"} for name in PARTS},
    }
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Beside PATH, where it outlives this process whatever ends that.
    found = options.json.with_name(f".{options.json.name}.parts")
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        asked = Asked(
            dry_run=options.dry_run,
            cifar10=options.cifar10,
            images=options.images,
            folder=Path(scratch),
            found=found,
        )
        is_ended = False
        try:
            run_all(asked, options.only, begin + 60 * options.minutes, figures, options.json)
        except KeyboardInterrupt:  # what was found until then is at PATH
            is_ended = True
    shutil.rmtree(found)
    outcomes = {name: part["outcome"] for name, part in figures["parts"].items()}
    print(json.dumps(figures, indent=1))
    return int(is_ended or "failed" in outcomes.values())


def run_all(
    asked: Asked, wanted: Sequence[str], end: float, figures: dict[str, Any], path: Path
) -> None:
    """Run the parts until `end`; `figures` is at `path` after each, and if one is interrupted."""
    waiting = [name for name in PARTS if name in wanted]
    for name in PARTS:
        if (why := _obstacle(name, asked, wanted)) is not None:
            figures["parts"][name] = {"outcome": "left out", "why": why}
            waiting = [other for other in waiting if other != name]
    write(path, figures)
    while waiting:
        name, left = waiting[0], end - time.monotonic()
        limit = left * PARTS[name].weight / sum(PARTS[one].weight for one in waiting)
        if left > 0:
            sys.stderr.write(f"{name}: at most {limit:.0f} s\n")
            try:
                figures["parts"][name] = run_one(name, asked, limit)
            except BaseException:
                why = "the command was ended; what it had found counts"
                figures["parts"][name] = _found_by(name, asked, "out of time", why)
                raise
            finally:
                write(path, figures)
        else:
            figures["parts"][name] = {"outcome": "out of time", "why": "no time was left"}
            write(path, figures)
        del waiting[0]


def _obstacle(name: str, asked: Asked, wanted: Sequence[str]) -> str | None:
    """Why a part is not to be run at all."""
    if name not in wanted:
        return "not among those that --only names"
    found, needed = len(machine.gpus()), PARTS[name].num_gpus
    if asked.dry_run or found >= needed:
        return None
    return f"it needs {needed} GPUs, and there is {found}"


def run_one(name: str, asked: Asked, limit: float) -> dict[str, Any]:
    """What a part found within `limit` seconds, and how it ended."""
    # Forked from a process that has imported everything, and that no part can harm.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.parts"])
    begin = time.monotonic()
    asked = dataclasses.replace(asked, deadline=begin + limit)
    process = context.Process(target=run_part, args=(name, asked, *_files_of(name, asked)))
    process.start()
    try:
        process.join(limit)
        is_late = process.is_alive()
    finally:
        _end(process)
    if is_late:
        why = f"it was ended after {limit:.0f} s; what it had found counts"
        found = _found_by(name, asked, "out of time", why)
    else:
        found = _found_by(name, asked, "failed", f"its process ended with {process.exitcode}")
    seconds = {"seconds": round(time.monotonic() - begin, 1), "limit_seconds": round(limit, 1)}
    return {**seconds, "state": machine.state(), **found}


def _files_of(name: str, asked: Asked) -> tuple[Path, Path]:
    """A part's figures and its log."""
    return asked.found / f"{name}.json", asked.found / f"{name}.log"


def _found_by(name: str, asked: Asked, outcome: Outcome, why: str) -> dict[str, Any]:
    """What a part has found, and if it was ended before it could say how: `outcome` and `why`."""
    path, log = _files_of(name, asked)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"figures": {}}
    so_far = PARTS[name].so_far
    if "outcome" not in found:
        if so_far is not None:
            found["figures"] |= so_far(asked.folder, found["figures"])
        found = {"outcome": outcome, "why": why, **found}
    if found["outcome"] != "done" and log.exists():
        found["log"] = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return found


def _end(process: BaseProcess) -> None:
    """End a part and all that it has started."""
    assert process.pid is not None, "it was started"
    for member in list(tree(process.pid)) if process.is_alive() else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    process.join()
    with contextlib.suppress(ProcessLookupError):  # what it left behind when it died
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
