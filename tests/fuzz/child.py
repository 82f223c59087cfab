"""One harness, in this process: `python -m tests.fuzz.child NAME SEED SECONDS FOLDER MOST`."""

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
    name, seed, seconds, folder, most = sys.argv[1:]
    harness = harness_of(name)
    outcome = run_harness(harness, int(seed), float(seconds), Path(folder), float(most))
    sys.stdout.write(f"{json.dumps(outcome)}\n")


if __name__ == "__main__":
    main()
