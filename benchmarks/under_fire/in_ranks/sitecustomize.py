"""Python imports this module when it starts: each process of the job listens for faults."""

from __future__ import annotations

from benchmarks.under_fire.inside import listen

listen()
