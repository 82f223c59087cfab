"""How a process of the job does several things at once: as a simulation can do it, too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor


class Threads:
    """The threads of this process, and what they wait for."""

    def event(self) -> threading.Event:
        return threading.Event()

    def thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        """One that is not started yet, and that the process does not wait for at its end."""
        return threading.Thread(target=target, name=name, daemon=True)

    def one_more(self, name: str, begin: Callable[[], object] | None = None) -> Executor:
        """Does one thing after another, in a thread of its own that begins with `begin`."""
        return ThreadPoolExecutor(1, name, initializer=begin)


THREADS = Threads()
