"""Memory that is freed stays with the process. Each test is in one of its own: it stays so."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.test_architecture import ROOT

PROGRAM = textwrap.dedent("""
    import resource

    from pipeline.ranks.memory import keep_freed_memory

    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(64 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    page_faults()
    before = page_faults()
    keep_freed_memory()
    page_faults()
    print(before, page_faults())
""")


def test_what_is_allocated_again_has_its_pages() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert 4 * after < before
