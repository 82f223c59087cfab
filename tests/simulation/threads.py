"""What stands for `threading` in simulated processes: threads and locks in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Self

from tests.simulation.tasks import Condition, Process, Task, Tasks

_LEAST_SECONDS = 0.25
"""Who waits for an event again and again looks as often as that."""


class SimEvent:
    """A `threading.Event`."""

    def __init__(self, tasks: Tasks, least_seconds: float = 0.0) -> None:
        """`least_seconds`: who looks more often waits as long."""
        self._is_set = False
        self._changed = Condition(tasks)
        self._least = least_seconds

    def set(self) -> None:
        self._is_set = True
        self._changed.notify()

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            timeout = max(timeout, self._least)
        return self._changed.wait(self.is_set, timeout)


class SimThread:
    """A `threading.Thread`."""

    def __init__(self, tasks: Tasks, process: Process, target: Callable[[], object]) -> None:
        self._tasks, self._process, self._target = tasks, process, target
        self._task: Task | None = None
        self._ended = Condition(tasks)

    def start(self) -> None:
        def body() -> None:
            self._target()
            self._task = None
            self._ended.notify()

        self._task = self._tasks.start(self._process, body)

    def is_alive(self) -> bool:
        return self._task is not None

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(lambda: not self.is_alive(), timeout)


class SimLock:
    """A `threading.Lock`."""

    def __init__(self, tasks: Tasks) -> None:
        self._is_held = False
        self._released = Condition(tasks)

    def acquire(self) -> None:
        self._released.wait(lambda: not self._is_held)
        self._is_held = True

    def release(self) -> None:
        self._is_held = False
        self._released.notify()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class SimCondition(SimLock):
    """A `threading.Condition`."""

    def __init__(self, tasks: Tasks) -> None:
        super().__init__(tasks)
        self._notified = Condition(tasks)
        self._num_notified = 0

    def wait(self, timeout: float | None = None) -> None:
        before = self._num_notified
        self.release()
        self._notified.wait(lambda: self._num_notified != before, timeout)
        self.acquire()

    def notify_all(self) -> None:
        self._num_notified += 1
        self._notified.notify()


def threading_of(tasks: Tasks) -> SimpleNamespace:
    """What a module finds under the name `threading`; a thread is of the process that makes it."""

    def event() -> Any:
        return SimEvent(tasks, _LEAST_SECONDS)

    def thread(*, target: Callable[..., object], args: tuple[Any, ...] = (), **_: object) -> Any:
        return SimThread(tasks, tasks.running().process, partial(target, *args))

    return SimpleNamespace(
        Event=event,
        Lock=partial(SimLock, tasks),
        Condition=partial(SimCondition, tasks),
        Thread=thread,
    )
