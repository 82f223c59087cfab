"""The simulator's command: many seeds, or one again with its story.

    python -m tests.simulation --seeds 10000        those from 0 on, on all cores
    python -m tests.simulation --seed 286           the story of one, the same every time
    python -m tests.simulation --cache 286          that of ranks which share a cache of shards
    python -m tests.simulation --month 0            a month of 1,024 ranks, a fault in three hours
    python -m tests.simulation --file SEEDS         the seeds in a file, one a line

It leaves with 1 if any seed shows a fault.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tests.simulation.month import month
from tests.simulation.simulate import Story, simulate, simulate_cache, warm_world

_CHUNK = 20


def seeds_in(path: Path) -> list[int]:
    """The seeds that a file lists; raises `ValueError` if it replays nothing."""
    words = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    wrong = next((word for word in words if word and not word.isdecimal()), None)
    if wrong is not None:
        raise ValueError(f"{path}: '{wrong}' is no seed; expected one whole number a line")
    seeds = [int(word) for word in words if word]
    if not seeds:
        raise ValueError(f"{path} replays nothing: it lists no seed; expected one number a line")
    return seeds


def fault_of(seed: int) -> tuple[int, str | None]:
    faults = {
        "--seed": simulate(seed).fault,
        "--warm": simulate(seed, warm_world).fault,
        "--cache": simulate_cache(seed).fault,
    }
    found = [f"{world}: {fault}" for world, fault in faults.items() if fault is not None]
    return seed, "; ".join(found) or None


def run_all(seeds: Iterable[int], num_processes: int) -> dict[int, str]:
    """What is wrong, by the seed that shows it."""
    with ProcessPoolExecutor(num_processes) as processes:
        results = processes.map(fault_of, seeds, chunksize=_CHUNK)
        return {seed: fault for seed, fault in results if fault is not None}


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", type=int, metavar="N", help="run the seeds 0 to N - 1")
    what.add_argument("--seed", type=int, metavar="N", help="run one seed, and tell its story")
    what.add_argument("--warm", type=int, metavar="N", help="the same with warm restarts")
    what.add_argument("--cache", type=int, metavar="N", help="the same for a shared cache")
    what.add_argument("--month", type=int, metavar="SEED", help="a month of 1,024 ranks")
    what.add_argument("--file", type=Path, help="run the seeds that a file lists")
    options = parser.parse_args(arguments)
    stories: dict[str, Callable[[int], Story]] = {
        "seed": simulate,
        "warm": partial(simulate, setting_of=warm_world),
        "cache": simulate_cache,
        "month": partial(simulate, setting_of=month),
    }
    for name, run in stories.items():
        if (seed := vars(options)[name]) is not None:
            story = run(seed)
            _say(*story.lines, f"seed {seed}: {story.fault or 'nothing is wrong'}")
            return int(story.fault is not None)
    try:
        seeds = range(options.seeds) if options.file is None else seeds_in(options.file)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    faults = run_all(seeds, len(os.sched_getaffinity(0)))
    _say(*(f"seed {seed}: {fault}" for seed, fault in faults.items()))
    _say(f"{len(seeds):,} seeds, {len(faults)} with a fault")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
