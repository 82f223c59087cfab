"""What the benchmark of decoding runs, counts and compares."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.callgrind import parse_profile
from benchmarks.decoding import DECODERS, Program, make_jobs, measure
from data_prep.shard_set.compiled import is_compiled

pytestmark = pytest.mark.skipif(
    not is_compiled() or shutil.which("cc") is None, reason="there is no compiled code"
)

PROFILE = """\
# callgrind format
events: Ir

fl=(1) a.c
fn=(1) outer
10 100
cfn=(2) inner
calls=3 50
11 3000
+1 7
fn=(2)
50 1000
51
* 2000
fn=(1)
-3 1
"""


@pytest.fixture
def contents(images: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(images.iterdir())[:6]]


def test_a_function_has_the_instructions_that_are_not_in_those_it_calls() -> None:
    assert parse_profile(PROFILE) == {"outer": 108, "inner": 3000}


def test_crops_are_the_same_with_all_restart_intervals(contents: list[bytes]) -> None:
    jobs = [make_jobs(contents, "original", restart) for restart in (0, 2)]
    assert [job.window for job in jobs[0]] == [job.window for job in jobs[1]]
    assert [job.content for job in jobs[0]] == contents
    assert all(one.content != other.content for one, other in zip(*jobs, strict=True))


@pytest.mark.parametrize("decoder", DECODERS)
def test_each_decoder_runs(decoder: str, contents: list[bytes], tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.set_jobs(make_jobs(contents, "original", 1))
    assert program.microseconds(decoder) > 0


@pytest.mark.slow
def test_instructions_are_counted_where_valgrind_is(contents: list[bytes], tmp_path: Path) -> None:
    jobs = make_jobs(contents[:2], "original", 2)
    found = measure(Program(tmp_path), jobs, rounds=1)
    assert found.pop("bytes") == round(sum(len(job.content) for job in jobs) / 2)
    assert set(found) == set(DECODERS)
    for costs in found.values():
        assert costs["microseconds"]["n"] == 1
        if shutil.which("valgrind") is None:
            assert costs["instructions"] == "valgrind is not installed"
        else:
            assert 0 < sum(costs["functions"].values()) <= costs["instructions"]
