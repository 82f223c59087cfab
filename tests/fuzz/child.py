"""`python -m tests.fuzz.child NAME SEED SECONDS FOLDER`: one harness, in this process."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

from tests.fuzz.harnesses import harness_of
from tests.fuzz.running import run_harness


def main() -> None:
    logging.disable()
    warnings.simplefilter("ignore")  # of numpy, about what it reads in spite of damage
    name, seed, seconds, folder = sys.argv[1:]
    outcome = run_harness(harness_of(name), int(seed), float(seconds), Path(folder))
    sys.stdout.write(f"{json.dumps(outcome)}\n")


if __name__ == "__main__":
    main()
