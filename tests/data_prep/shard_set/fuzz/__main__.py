"""`python -m tests.data_prep.shard_set.fuzz --seconds 600`: fuzz the C code for that long."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from tests.data_prep.shard_set.fuzz.running import FoundError, build, fuzz

ENDLESS = 2**62


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, help="default: another each time")
    arguments = parser.parse_args()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        try:
            outcome = fuzz(build(Path(folder)), seed, arguments.seconds, ENDLESS)
        except FoundError as error:
            sys.exit(f"seed {seed}: {error}")
    sys.stdout.write(
        f"seed {seed}: {outcome.inputs:,} inputs, nothing found. Our decoder answered for "
        f"{outcome.answered:,}, libjpeg complained of {outcome.refused:,}, of which ours answered "
        f"for {outcome.doubtful:,}\n"
    )


if __name__ == "__main__":
    main()
