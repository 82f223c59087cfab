"""Worker processes that write shards, and end with the process that started them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from data_prep.convert.assignment import ShardName
from data_prep.convert.metrics import Done
from data_prep.convert.output import ConversionError
from data_prep.convert.shard import ShardJob, ShardRecord, write_shard
from data_prep.shard_set.conversion_metrics import REJECT_REASONS, Stage
from data_prep.shard_set.rejection import RejectReason
from data_prep.sources.samples import Sample

_POLL_SECONDS = 0.2
_MAX_READ_BYTES = 1 << 20
_REASONS: tuple[RejectReason | None, ...] = (None, *REJECT_REASONS)
"""What became of a sample, by the byte that a worker sends."""

_SHARDS_PER_WORKER = 2
"""Handed over ahead. All at once would need an object for every sample."""


def write_shards(
    names: Sequence[ShardName],
    pick: Callable[[ShardName], Sequence[Sample]],
    job: ShardJob,
    num_workers: int,
    show: Callable[[Done], None],
) -> Generator[tuple[ShardName, ShardRecord, Mapping[Stage, float]], None, None]:
    """Write all shards; yields each, with record and seconds of each stage, when it is on disk.

    `show` gets the samples done, several times a second. Close the generator to stop.
    Raises `ConversionError` if a worker dies or runs out of memory, and what workers raise.
    """
    if not names:
        return
    # Spawned, not forked: safe with threads, and no worker inherits an end of another's pipe.
    context = multiprocessing.get_context("spawn")
    stop_reader, stop = context.Pipe(duplex=False)
    counter, counter_writer = context.Pipe(duplex=False)
    os.set_blocking(counter.fileno(), False)
    executor = ProcessPoolExecutor(
        min(num_workers, len(names)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(job, stop_reader, counter_writer),
    )
    num_done: Done = Counter()
    waiting = iter(names)
    pending: dict[Future[Mapping[Stage, float]], ShardName] = {}
    try:
        while True:
            room = _SHARDS_PER_WORKER * num_workers - len(pending)
            with _stops_held():
                for name in itertools.islice(waiting, room):
                    pending[executor.submit(_run, name, pick(name))] = name
            if not pending:
                break
            done, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            with contextlib.suppress(BlockingIOError):  # none was done
                codes = os.read(counter.fileno(), _MAX_READ_BYTES)
                num_done.update(map(_REASONS.__getitem__, codes))
            show(num_done)
            for future in done:
                name = pending.pop(future)
                seconds = future.result()
                yield name, ShardRecord.load(job.shards, name), seconds
        executor.shutdown()
    except (BrokenProcessPool, MemoryError):
        raise ConversionError(
            "a worker process died or ran out of memory; run the same command again to go on, "
            f"with fewer than --workers {num_workers} if memory is short"
        ) from None
    finally:
        stop.close()
        executor.shutdown(cancel_futures=True)
        for end in (stop_reader, counter, counter_writer):
            end.close()


@contextlib.contextmanager
def _stops_held() -> Iterator[None]:
    """Block SIGINT and SIGTERM until the block ends, and in workers started in it for good.

    This process gets the signal, too, and stops them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_write: Callable[[ShardName, Sequence[Sample]], Mapping[Stage, float]]
"""Set in worker processes only."""


def _start_worker(job: ShardJob, stop: Connection, counter: Connection) -> None:
    global _write
    threading.Thread(target=_exit_with_parent, args=(stop,), daemon=True).start()

    # A byte in a pipe needs no lock, which a worker that is killed could leave locked.
    def count_sample(reason: RejectReason | None) -> None:
        os.write(counter.fileno(), bytes((_REASONS.index(reason),)))

    _write = functools.partial(write_shard, job=job, count_sample=count_sample)


def _exit_with_parent(stop: Connection) -> None:
    """Leave at once when the parent closes its end of the pipe, or dies."""
    stop.poll(None)
    os._exit(1)


def _run(name: ShardName, samples: Sequence[Sample]) -> Mapping[Stage, float]:
    return _write(name, samples)
