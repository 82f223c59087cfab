"""A competitor with a chosen behaviour, for the tests of how competitors are run.

python -m tests.benchmarks.competitor … --behaviour NAME
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rivals.rounds import Epoch, Task, serve


def open_epoch(task: Task) -> Epoch:
    if BEHAVIOUR == "is not installed":
        raise ImportError("No module named 'rival'")
    if BEHAVIOUR == "never gets ready":
        (task.images / "pid").write_text(f"{os.getpid()}")
        time.sleep(1000)
    if BEHAVIOUR == "looks for others":
        pid = (task.images / "pid").read_text()
        assert not Path(f"/proc/{pid}").exists(), "it has been ended"
    if BEHAVIOUR == "breaks":
        raise OSError("no space left")
    num_epochs = 0

    def epoch() -> int:
        nonlocal num_epochs
        num_epochs += 1
        sys.stdout.write("what a library prints\n")
        with (task.scratch.parents[1] / "log").open("a") as log:
            log.write(f"{task.scratch.parent.name} {task.rank} {num_epochs}\n")
        if num_epochs == 3 and BEHAVIOUR == "hangs":
            sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            (task.scratch / "pid").write_text(f"{sleeper.pid}")
            time.sleep(1000)
        if num_epochs == 3 and BEHAVIOUR == "dies":
            sys.exit(3)
        return task.num_images

    return epoch


if __name__ == "__main__":
    at = sys.argv.index("--behaviour")
    _, BEHAVIOUR = sys.argv[at : at + 2]
    del sys.argv[at : at + 2]
    serve(__doc__, open_epoch, ["numpy"])
