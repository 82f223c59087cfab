"""A process that has ffcv loaded, which takes seconds, and forks to do what the tests ask.

Reads requests from standard input and answers on standard output, a line of JSON each.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import ffcv.fields.basics
import ffcv.fields.rgb_image
import ffcv.loader
import ffcv.reader
import ffcv.types
import numpy as np

from data_prep.__main__ import main
from data_prep.beton import samples as beton_samples


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        answer = poll(request["pid"]) if "pid" in request else start(request)
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def poll(pid: int) -> int | None:
    """The exit code of a process that was started, or None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def start(request: dict[str, Any]) -> int:
    """Fork; the child does what is asked, with its output going to the request's files."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `__main__` does
        for number, name in enumerate(("input", "output", "errors")):
            path = request.get(name, os.devnull)
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), number)
        code = run(request)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(request: dict[str, Any]) -> int:
    if "max_file_bytes" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["max_file_bytes"],) * 2)
    if "held" in request:
        hold_still(request["method"], request["after"], Path(request["held"]))
    if "load" in request:
        load(Path(request["load"]), Path(request["to"]))
        return 0
    return main(["beton", *request["arguments"]])


def hold_still(method: str, after: int, folder: Path) -> None:
    """Behind so many calls of the samples' method, until FOLDER/go-on is there.

    So there is time to disturb the work, however late that is done. FOLDER/held says that it waits.
    """
    do = getattr(beton_samples.ShardSamples, method)
    num_left = after

    def do_if_let(*arguments: Any) -> Any:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            (folder / "held").touch()
            while not (folder / "go-on").exists():
                time.sleep(0.01)
        return do(*arguments)

    setattr(beton_samples.ShardSamples, method, do_if_let)


def load(path: Path, to: Path) -> None:
    """Save all that ffcv's own loader and reader find in a file."""
    loader = ffcv.loader.Loader(
        str(path),
        batch_size=7,
        num_workers=1,
        order=ffcv.loader.OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={
            "image": [ffcv.fields.rgb_image.SimpleRGBImageDecoder()],
            "label": [ffcv.fields.basics.IntDecoder()],
        },
    )
    batches = [(images.copy(), labels.copy()) for images, labels in loader]
    reader = ffcv.reader.Reader(str(path))
    np.savez(
        to,
        images=np.concatenate([images for images, _ in batches]),
        labels=np.concatenate([labels for _, labels in batches])[:, 0],
        page_size=reader.page_size,
        rows=reader.metadata,
        allocations=reader.alloc_table,
        field_descriptors=reader.field_descriptors,
        header=np.fromfile(path, ffcv.types.HeaderType, count=1),
    )


if __name__ == "__main__":
    serve()
