"""One tiny round of conversions with restart markers and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.image_folder import find_images
from benchmarks.recoding import INTERVALS, compare_intervals
from data_prep.shard_set.compiled import is_compiled


@pytest.mark.slow
def test_conversions_and_their_bytes_are_compared(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled():
        pytest.skip("data_prep.shard_set._pixels was not built")
    assert 2 in INTERVALS
    monkeypatch.setattr("benchmarks.recoding.INTERVALS", (0, 2))
    monkeypatch.setattr("benchmarks.recoding._SIZES", {"originals": None})
    found = compare_intervals(find_images(images), tmp_path, 1, 30)["originals"]
    rates = found["images_per_second"]
    assert set(rates) == {"--restart 0", "--restart 2"}
    assert all(rate["median"] > 0 for rate in rates.values())
    assert set(found["ratios"]) == {"--restart 2 / --restart 0"}
    num_bytes = found["bytes against the first"]
    assert num_bytes["--restart 0"] == 1
    assert 0.5 < num_bytes["--restart 2"] < 1.5
    assert num_bytes["--restart 2"] != 1
