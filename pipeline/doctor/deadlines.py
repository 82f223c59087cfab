"""Questions that may get no answer: a file system or a name server may hang for hours."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from pipeline.config.timeouts import ANSWER_SECONDS, MEETING_SECONDS
from pipeline.run.ending import ExitCode

T = TypeVar("T")
U = TypeVar("U")


class Answers:
    """Asks questions, each in a thread of its own, and notes which got no answer."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def to(self, name: str, question: Callable[[], T], otherwise: U) -> T | U:
        """What `question` returns or raises, or `otherwise` if it does neither in time."""
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        if answer in wait([answer], ANSWER_SECONDS).done:
            return answer.result()
        self.missing.append(name)
        return otherwise


@contextlib.contextmanager
def deadline(name: str) -> Iterator[None]:
    """End this process with a sentence if the block, a meeting of all ranks, takes too long."""

    def end() -> None:
        sentence = f"error: {name} is stuck: no answer within {MEETING_SECONDS:g} s\n"
        os.write(2, sentence.encode())
        os._exit(ExitCode.FAILED)

    timer = threading.Timer(MEETING_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
