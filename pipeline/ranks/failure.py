"""How a failed job ends: with one sentence, from the first rank to fail and from rank 0.

The exceptions of the project. Those that are foreseen (`OSError`, `ValueError`, `ImportError`,
`RankFailure`) are reported in one sentence; any other is a defect, and its traceback is shown.

    ValueError          what was given cannot be used
      PathOptionError   data_prep.shard_set.files            an option that is no path
      ShardSetError     data_prep.shard_set.manifest         no shard set, or not a whole one
      DamagedTarError   data_prep.shard_set.tar_walk         a tar that is cut, or no tar
      ForeignTarError   data_prep.shard_set.foreign_tar      a tar of others that cannot be used
      DamagedJpegError  data_prep.shard_set.jpeg_header      a JPEG without a whole header
      SourceError       data_prep.sources.source             raw data that are not as expected
      ConversionError   data_prep.convert.output             a conversion that cannot go on
      CheckpointError   pipeline.run.checkpoint              a checkpoint that cannot be used
    OSError             the system does not give what is needed
      CacheFullError    pipeline.data.cache.cache_directory  no room for a shard
      FetchError        pipeline.data.cache.remote           a URL that cannot be fetched
    RuntimeError        the work cannot go on
      RankFailure       pipeline.ranks.failure               of this rank or of another one
      LostRank          pipeline.ranks.failure               another rank is gone, or hangs
      ExchangeError     pipeline.model.columns               so is that of the other column
      InexactEvaluation pipeline.train.evaluation            a sample was not seen exactly once
    Exception           caught where it is expected; ends no command
      RejectedImage     data_prep.shard_set.rejection          an image that is left out
      CorruptImage      pipeline.data.readers.sample_index   a damaged image; another stands in
      FetchStopped      pipeline.data.cache.remote           a fetch that nobody waits for
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn, Self, TypeVar

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from data_prep.shard_set.files import describe
from data_prep.shard_set.streams import say
from data_prep.shard_set.typed import check_types, read_json
from pipeline.model.columns import ExchangeError
from pipeline.run.ending import ExitCode, FailureCause

T = TypeVar("T")

_FORESEEN = (OSError, ValueError, ImportError)


class RankFailure(RuntimeError):
    """The job cannot go on: one sentence that names the rank that failed first and why."""

    def __init__(
        self, text: str, *, is_reported_here: bool = True, cause: FailureCause | None = None
    ) -> None:
        super().__init__(text)
        self.is_reported_here = is_reported_here
        """Whether this rank is one of those that report it: rank 0 and the first to fail."""
        self.cause = cause

    @property
    def is_of_others(self) -> bool:
        """Whether nothing is wrong with this rank but that it has lost another one."""
        return self.__cause__ is not None and cause_of(self.__cause__) == "lost_rank"


class LostRank(RuntimeError):
    """What waited for other ranks broke: one was killed, hangs, or its host is gone."""


@contextlib.contextmanager
def waiting_for_ranks() -> Iterator[None]:
    """Around collectives: what breaks them is raised as `LostRank`.

    gloo raises a plain `RuntimeError`, as much else does: only the place says what it means.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or type(error) is RuntimeError:
            raise LostRank(fact_of(error)) from error
        raise


_FIRST_FAILURE = "last word"


@dataclass(frozen=True, slots=True)
class FirstFailure:
    """What ends the job, as the first rank to know leaves it in the job's store.

    It is there before that rank leaves and the other ranks' connections to it break: they report
    this cause, and not that their collective failed.
    """

    text: str
    rank: int | None = None
    """The one that failed; None: this is the watchdog's verdict on ranks that hang."""
    host: str = ""
    cause: FailureCause | None = None
    is_main_silent: bool = False
    """Whether it is a verdict on rank 0, which then cannot report it itself."""
    ranks: Sequence[int] = ()
    """Those that a verdict is on; it may be on none, where all wait for each other."""

    def __str__(self) -> str:
        return self.text if self.rank is None else f"rank {self.rank} on {self.host}: {self.text}"

    def publish(self, store: Store) -> Self:
        """Leave it unless there is one; returns the one that is there. May raise `RuntimeError`."""
        word = json.dumps(asdict(self))
        return from_store(type(self), store.compare_set(_FIRST_FAILURE, "", word))

    @classmethod
    def find(cls, store: Store) -> Self | None:
        """The one that is there, if any is; raises `RuntimeError` if the store is gone."""
        return from_store(cls, store.get(_FIRST_FAILURE)) if store.check([_FIRST_FAILURE]) else None


def from_store(kind: type[T], content: bytes) -> T:
    """What a rank has left in the job's store as JSON, a dataclass.

    Raises `RuntimeError` if that is something else.
    """
    try:
        found = kind(**read_json(content))
        check_types(found, kind, "")
    except (TypeError, ValueError) as error:
        raise RuntimeError(
            f"the job's store holds {content[:40]!r}, which is no {kind.__name__} ({error}): start "
            "the job again on a port that no other program uses"
        ) from None
    return found


def sentence_of(error: BaseException) -> str:
    """What a user reads of an exception; one that is not foreseen keeps its type's name."""
    if isinstance(error, (*_FORESEEN, RankFailure)):
        return describe(error)
    if cause_of(error) == "lost_rank":
        return f"lost another rank: it was killed, hangs or its host is gone ({fact_of(error)})"
    return f"{type(error).__name__}: {_first_line(error)}"


def cause_of(error: BaseException) -> FailureCause | None:
    return "lost_rank" if isinstance(error, LostRank | ExchangeError | DistError) else None


def fact_of(error: BaseException) -> str:
    """What happened, from a broken connection's error: gloo adds its source line and advice."""
    text = re.sub(r"^\[\S+:\d+\] ", "", _first_line(error))
    return text.partition(". ")[0]


def _first_line(error: BaseException) -> str:
    """Of its text; gloo and torch add stacks below."""
    return str(error).partition("\n")[0]


def exit_code_of(body: Callable[[], int]) -> int:
    """Run `body`; an exception becomes a sentence on standard error and `ExitCode.FAILED`.

    All ranks know a `RankFailure`, and only some report it.
    """
    try:
        return body()
    except RankFailure as failure:
        _print_unforeseen(failure.__cause__)
        if failure.is_reported_here:
            say(f"error: {failure}", stream=sys.stderr)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        _print_unforeseen(error)
        say(f"error: {sentence_of(error)}", stream=sys.stderr)
    sys.stderr.flush()
    return ExitCode.FAILED


def leave(code: int) -> NoReturn:
    """End this process with the exit code `code`, without finalizing the interpreter.

    A thread of gloo that frees its last tensor while Python finalizes aborts the process, and a run
    that is done would fail (seen in torch 2.13, in one of a dozen runs).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _print_unforeseen(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, _FORESEEN) and cause_of(error) is None:
        traceback.print_exception(error)
