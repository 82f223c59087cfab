"""The weights of runs: bit for bit on machines of a known class, and nearly so on all others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.formats.fixtures import (
    AVX2,
    CONTINUED,
    WEIGHTS,
    keep_to_one_core,
    machine_class,
    run_module,
)
from tests.formats.make import result_of, weights_words
from tests.pipeline.rank_jobs import Job

_LOSS_TOLERANCE = 1e-5
_NORM_TOLERANCE = 1e-5
_NUMBER_TOLERANCE = 1e-4
"""Relative to the largest number of the tensor that is compared. Held to AVX2, a processor with
AVX-512 has differed by 1e-5 at most, and by 6e-7 in the norms."""


def known_weights(version: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((version / "weights.json").read_bytes())
    return found


def compare(known: Mapping[str, Any], key: str, found: Mapping[str, Any]) -> None:
    """Fail unless a run `found` what it did when the fixtures were made, on a machine `key`."""
    if key in known:
        assert found["losses"] == known[key]["losses"]
        assert found["sha256"] == known[key]["sha256"], f"other weights than before on {key}"
    for other in known.values():
        compare_nearly(found, other)


def compare_nearly(found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Machines differ in the order in which they add, and so in the last bits."""
    assert found["losses"] == pytest.approx(known["losses"], rel=_LOSS_TOLERANCE)
    assert list(found["weights"]) == list(known["weights"])
    for name, (norm, *numbers) in known["weights"].items():
        other_norm, *others = found["weights"][name]
        assert other_norm == pytest.approx(norm, rel=_NORM_TOLERANCE), name
        largest = max(map(abs, numbers))
        assert others == pytest.approx(numbers, abs=_NUMBER_TOLERANCE * largest), name


def test_known_machines_agree(version: Path) -> None:
    known = known_weights(version)
    assert set(known) == {*WEIGHTS, CONTINUED}
    for entries in known.values():
        first, *others = entries.values()
        assert others, "one machine alone shows no difference"
        for other in others:
            compare_nearly(other, first)


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_run_gives_the_same_weights(version: Path, name: str, large: Path, scratch: Path) -> None:
    run = scratch / "run"
    words = weights_words(version, name, large, run)
    with Job(1, "pipeline.train", words, before=keep_to_one_core) as job:
        assert job.wait() == [0], job.errors
    compare(known_weights(version)[name], machine_class({}), result_of(run))


@pytest.mark.slow
def test_a_run_gives_the_same_weights_held_to_avx2(
    version: Path, large: Path, scratch: Path
) -> None:
    words = weights_words(version, "cifar10", large, scratch / "run")
    run_module("pipeline.train", *words, environment=AVX2, on_one_core=True)
    known = known_weights(version)["cifar10"]
    compare(known, machine_class(AVX2), result_of(scratch / "run"))
