"""Our own conversion, run as the rivals are: `benchmarks.rivals.rounds` says how.

An epoch is one whole command, started anew: `python -m data_prep shard folder --size 256`.
"""

from __future__ import annotations

import shutil

from benchmarks.measurement import shard_folder
from benchmarks.rivals.rounds import STORED_PIXELS, Epoch, Task, serve
from data_prep.shard_set.manifest import read_manifest


def open_epoch(task: Task) -> Epoch:
    shards = task.scratch / "shards"

    def epoch() -> int:
        shutil.rmtree(shards, ignore_errors=True)
        encoding = "rgb" if task.setting == "raw256" else "jpeg"
        shard_folder(task.images, shards, encoding=encoding, size=STORED_PIXELS)
        return sum(split.num_samples for split in read_manifest(shards).splits.values())

    return epoch


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["pillow", "simplejpeg"], ["jpeg256", "raw256"])
