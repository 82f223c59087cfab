"""What the exit codes of a rank mean; apart, so that a launcher need not load torch for them."""

from __future__ import annotations

FAILED = 1
"""The rank failed."""

STOPPED = 75
"""The run was asked to stop and can go on: EX_TEMPFAIL of sysexits.h, 'try again'."""

INTERRUPTED = 130
"""Ctrl-C ended the rank on the spot, as shells have it."""
