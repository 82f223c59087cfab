"""`python -m tests.fuzz --seconds 600`: each fuzzer for that long, one after another.

The C code has its own: `python -m tests.data_prep.shard_set.fuzz`.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from tests.fuzz.harnesses import NAMES
from tests.fuzz.running import FoundError, fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--seconds", type=float, default=600, help="of the processor, for each")
    parser.add_argument("--seed", type=int, help="default: another each time")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no fuzzer {', '.join(sorted(unknown))}; expected {', '.join(NAMES)}")
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    num_found = 0
    for name in arguments.names or NAMES:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            try:
                found = fuzz(name, seed, arguments.seconds, Path(folder))
                words = f"{found.inputs:,} inputs, {found.read:,} read, {found.kinds} refusals"
            except FoundError as error:
                words, num_found = f"FOUND {error}", num_found + 1
        sys.stdout.write(f"{name}, seed {seed}: {words}\n")
        sys.stdout.flush()
    sys.exit(num_found > 0)


if __name__ == "__main__":
    main()
