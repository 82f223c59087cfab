"""Virtual time: tasks that run one at a time, each in a thread, in an order that a seed decides.

A task runs until it waits: for a time, or for something of another task's. Then the next event of
the queue has its turn. So whatever the product's code does between two waits is done at one moment.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


class Killed(BaseException):
    """Ends a task of a process that is no more; nothing catches it."""


class Stuck(AssertionError):
    """The simulation itself does not end."""


@dataclass(eq=False)
class Process:
    """What is killed or stopped as one."""

    name: str
    is_dead: bool = False
    is_frozen: bool = False
    """Nothing of it runs: it is stopped by a signal, or one of its threads keeps Python's lock."""
    tasks: list[Task] = field(default_factory=list)
    woken: list[Task] = field(default_factory=list)
    """While it is frozen."""


class Task:
    """Code that may wait in virtual time."""

    def __init__(self, tasks: Tasks, process: Process, target: Callable[[], None]) -> None:
        self._tasks = tasks
        self.process = process
        self._target = target
        self._turn = threading.Lock()
        self._turn.acquire()
        self.is_over = False
        self._interruption: BaseException | None = None
        self.alarm = 0
        """The number of what wakes it: an older alarm is void."""
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self.process.is_dead:
                self._target()
        except Killed:
            pass
        except BaseException as error:
            self._tasks.error = self._tasks.error or error
        self.is_over = True
        self._tasks.back.release()

    def go_on(self) -> None:
        """Let it run until it waits or ends; the scheduler's thread calls it."""
        if self.is_over:
            return
        if self.thread.ident is None:
            self.thread.start()
        self._tasks.current = self
        self._tasks.on_turn(self.process)
        self._turn.release()
        self._tasks.back.acquire()
        self._tasks.current = None

    def pause(self) -> None:
        """Give the turn away; called by the task itself."""
        if self.process.is_dead:  # on its way out
            raise Killed
        self._tasks.back.release()
        self._turn.acquire()
        if self.process.is_dead:
            raise Killed
        if self._interruption is not None:
            interruption, self._interruption = self._interruption, None
            raise interruption

    def interrupt(self, error: BaseException) -> None:
        """Raise it where the task waits."""
        self._interruption = error
        self._tasks.wake(self)

    def join_thread(self) -> None:
        if self.thread.ident is not None:
            self.thread.join()


class Tasks:
    """The clock and the queue of events."""

    def __init__(self) -> None:
        self.now = 0.0
        self.current: Task | None = None
        self.error: BaseException | None = None
        self.on_turn: Callable[[Process], None] = lambda _: None
        """Called before a task of this process goes on."""
        self.back = threading.Lock()
        self.back.acquire()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._all: list[Task] = []

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Call it at that time; it must not wait."""
        heapq.heappush(self._queue, (max(time, self.now), next(self._numbers), call))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.at(self.now + seconds, call)

    def start(self, process: Process, target: Callable[[], None]) -> Task:
        task = Task(self, process, target)
        process.tasks.append(task)
        self._all.append(task)
        self.wake(task)
        return task

    def wake(self, task: Task, seconds: float = 0.0) -> None:
        """Let a task that pauses go on after some time; what else was to wake it is void."""
        task.alarm += 1
        number = task.alarm

        def ring() -> None:
            if task.alarm != number or task.is_over:
                return
            if task.process.is_frozen and not task.process.is_dead:
                task.process.woken.append(task)
            else:
                task.go_on()

        self.after(seconds, ring)

    def sleep(self, seconds: float) -> None:
        """Pause the task that runs."""
        task = self.running()
        self.wake(task, seconds)
        task.pause()

    def running(self) -> Task:
        assert self.current is not None, "only tasks wait"
        return self.current

    def check_alive(self) -> None:
        """Raise `Killed` if the process of the task that runs was killed meanwhile."""
        if self.current is not None and self.current.process.is_dead:
            raise Killed

    def kill(self, process: Process) -> None:
        """End all its tasks where they are."""
        process.is_dead = True
        for task in process.tasks:
            if task is not self.current:
                self.wake(task)

    def freeze(self, process: Process) -> None:
        process.is_frozen = True

    def thaw(self, process: Process) -> None:
        process.is_frozen = False
        for task in process.woken:
            self.wake(task)
        process.woken.clear()

    def run(self, until: Callable[[], bool], max_seconds: float) -> None:
        """Let events happen until `until` holds. Raises what a task raised, or `Stuck`."""
        while not until():
            if not self._queue or self._queue[0][0] > max_seconds:
                raise Stuck(f"nothing ends the simulation, {self.now:.0f} s after its begin")
            self.now, _, call = heapq.heappop(self._queue)
            call()
            if self.error is not None:
                raise self.error

    def close(self) -> None:
        """End all tasks, so that no thread is left."""
        for task in self._all:
            task.process.is_dead = True
        for task in self._all:
            task.go_on()
        for task in self._all:
            task.join_thread()
        self._queue.clear()


class Condition:
    """What tasks wait for until another one, or an event, says that it may have come."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._waiting: list[Task] = []

    def wait(self, is_there: Callable[[], bool], timeout: float | None = None) -> bool:
        """Pause the task until `is_there()`; False if the time is over before."""
        deadline = math.inf if timeout is None else self._tasks.now + timeout
        task = self._tasks.running()
        while not is_there():
            if self._tasks.now >= deadline:
                return False
            self._waiting.append(task)
            if deadline < math.inf:
                self._tasks.wake(task, deadline - self._tasks.now)
            task.pause()
            if task in self._waiting:
                self._waiting.remove(task)
        return True

    def notify(self) -> None:
        for task in self._waiting:
            self._tasks.wake(task)
        self._waiting.clear()
