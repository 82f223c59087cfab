"""How many files this process may have open: every shard in use is one."""

from __future__ import annotations

import resource


def raise_file_limit() -> int:
    """Raise the soft limit as far as is allowed; returns that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
