"""How a batch is divided among threads."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.readers.file_reader import even_parts, shrinking_parts

counts, threads = st.integers(0, 300), st.integers(1, 20)


def sizes(parts: list[slice], num_samples: int) -> list[int]:
    """After checking that they are the batch, in order and once."""
    edges = [0, *(part.stop for part in parts)]
    assert [(part.start, part.stop) for part in parts] == list(itertools.pairwise(edges))
    assert edges[-1] == num_samples
    found = [part.stop - part.start for part in parts]
    assert all(found)
    return found


@given(num_samples=counts, num_parts=threads)
def test_even_parts_differ_by_one_sample(num_samples: int, num_parts: int) -> None:
    found = sizes(even_parts(num_samples, num_parts), num_samples)
    assert len(found) == min(num_samples, num_parts)
    assert max(found, default=0) - min(found, default=0) <= 1


@given(num_samples=counts, num_threads=threads)
def test_shrinking_parts_leave_something_for_every_thread(
    num_samples: int, num_threads: int
) -> None:
    found = sizes(shrinking_parts(num_samples, num_threads), num_samples)
    assert found == sorted(found, reverse=True)
    assert found[-1:] <= [4]
    assert sum(found[:1]) <= -(-num_samples // num_threads)


def test_parts_of_a_usual_batch() -> None:
    found = sizes(shrinking_parts(128, 2), 128)
    assert found == [43, 29, 19, 13, 8, 6, 4, 4, 2]
