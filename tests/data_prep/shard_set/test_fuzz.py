"""Fuzzes the C code with some inputs, the same ones on every machine, and with sanitizers.

`python -m tests.data_prep.shard_set.fuzz --seconds 600` does it for longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import machine
from tests.data_prep.shard_set.decoders import needs_decoder
from tests.data_prep.shard_set.fuzz.running import build, fuzz, has_sanitizers


@needs_decoder
@pytest.mark.slow
def test_damaged_jpegs_neither_break_the_c_code_nor_change_a_picture(tmp_path: Path) -> None:
    if not has_sanitizers():
        machine.skip("needs gcc with libasan and libubsan, and libjpeg-turbo's headers")
    limit = int(machine.DEADLINE_SECONDS)
    outcome = fuzz(build(tmp_path), seed=1, seconds=limit, iterations=60_000)
    assert outcome.inputs == 60_000
    assert min(outcome.answered, outcome.refused) > outcome.inputs / 10, outcome
