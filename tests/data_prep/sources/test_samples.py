"""Tables of samples against lists of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.keys import KEY_PATTERN
from data_prep.sources.samples import Sample, SampleTable

TEXT = st.text(st.characters(), max_size=9)  # surrogates too, as in names that are not UTF-8
SAMPLES = st.builds(Sample, st.from_regex(KEY_PATTERN, fullmatch=True), st.integers(0, 6), TEXT)
LISTS = st.lists(st.lists(SAMPLES, max_size=5), max_size=5)


@given(LISTS)
def test_table_is_the_list_it_was_made_of(parts: list[list[Sample]]) -> None:
    table, samples = SampleTable(), [sample for part in parts for sample in part]
    for part in parts:
        table.extend(SampleTable(part))
    assert list(table) == samples
    assert list(SampleTable(samples)) == samples
    assert list(table.keys()) == [sample.key for sample in samples]
    labels = [sample.label for sample in samples]
    assert table.count_labels(7) == [labels.count(label) for label in range(7)]
    assert [table[row] for row in range(-len(samples), 0)] == samples


@given(st.lists(SAMPLES, max_size=20))
def test_order_and_repetition_of_keys(samples: list[Sample]) -> None:
    table, keys = SampleTable(samples), [sample.key for sample in samples]
    assert [keys[row] for row in table.rows_by_key()] == sorted(keys)
    assert table.repeated_keys() == sorted({key for key in keys if keys.count(key) > 1})


def test_long_table() -> None:
    samples = [Sample(f"k{number}", number % 1000, f"path/{number}") for number in range(5000)]
    table = SampleTable(samples)
    assert len(table) == 5000
    assert [table[row] for row in (0, 127, 128, 129, 4999, -1)] == [
        samples[row] for row in (0, 127, 128, 129, 4999, -1)
    ]
