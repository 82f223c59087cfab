"""The sealed recipes end in a verdict that follows from integers, or say why there is none."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.imagenet import NUM_VAL, check_shards
from benchmarks.imagenet_result import FLOORS, LIMITS, Count, Outcome, page
from benchmarks.measurement import environment, shard_synthetic
from data_prep.shard_set.manifest import ShardSetError, read_manifest
from pipeline.config.recipes import RECIPES
from tests.pipeline.monitoring import REPOSITORY

_MOST = {1: (21_450, 10_000), 10: (20_400, 9_250)}
"""Wrong answers that pass: 42.9 and 20.0 % of 50,000, 40.8 and 18.5 %."""


def outcome(
    change: Callable[[Count], Count] = lambda count: count, recipe: str = "alexnet_2012"
) -> Outcome:
    """One that just passes, but for what `change` does."""
    counts = (
        Count(views=views, num_images=NUM_VAL, correct1=NUM_VAL - one, correct5=NUM_VAL - five)
        for views, (one, five) in _MOST.items()
    )
    curve = tuple((float(epoch), floor) for epoch, floor in FLOORS[recipe].items())
    return Outcome(recipe=recipe, counts=tuple(map(change, counts)), curve=curve, facts={})


@pytest.mark.parametrize("recipe", LIMITS)
def test_the_last_count_that_passes(recipe: str) -> None:
    assert recipe in RECIPES
    assert outcome(recipe=recipe).faults() == []
    assert outcome(recipe=recipe).warnings() == []


@pytest.mark.parametrize("views", _MOST)
@pytest.mark.parametrize("name", ["correct1", "correct5"])
def test_one_image_more_fails(views: int, name: str) -> None:
    def change(count: Count) -> Count:
        if count.views != views:
            return count
        return dataclasses.replace(count, **{name: getattr(count, name) - 1})

    (fault,) = outcome(change).faults()
    wrong = _MOST[views][name == "correct5"] + 1
    assert f"{wrong:,} of 50,000 are wrong" in fault
    assert f"at most {wrong - 1:,} may be" in fault
    assert f"top-{name[-1]} of {'the middle view' if views == 1 else '10 views'}" in fault


def test_what_is_not_evaluated_does_not_pass() -> None:
    whole = outcome()
    part = dataclasses.replace(whole, counts=whole.counts[:1])
    assert part.faults() == ["10 views is not evaluated"]


def test_a_curve_below_its_floor_is_told() -> None:
    whole = outcome()
    late = dataclasses.replace(whole, curve=((4.0, 0.15), (5.0, 0.19), (6.0, 0.4)))
    assert late.warnings() == ["after epoch 5 val top-1 is 19.00%, below 20%"]
    assert late.faults() == []


def test_the_page_has_verdict_and_integers() -> None:
    document = environment() | {
        **{"dry_run": False, "git_revision": "abc", "shard_set": "ImageNet"},
        "manifest_sha256": "0" * 64,
    }
    worse = outcome(lambda count: dataclasses.replace(count, correct5=0))
    text = page([outcome(), dataclasses.replace(worse, recipe="alexnet_fast")], document)
    assert "## alexnet_2012: PASS" in text
    assert "## alexnet_fast: FAIL" in text
    assert "| 1 | 28,550 of 50,000 | 42.90% | 42.3% to 42.9% | 40,000 of 50,000 | 20.00% |" in text


@pytest.mark.slow
def test_other_shards_are_refused_and_a_dry_run_goes_all_the_way(tmp_path: Path) -> None:
    shards = shard_synthetic(tmp_path / "shards", num_train=16, num_val=8, size=256)
    with pytest.raises(ShardSetError, match="10 classes, 16 images in train and 8 in val; ILSVRC"):
        check_shards(read_manifest(shards), str(shards))
    command = [sys.executable, "-m", "benchmarks.imagenet", "--shards", str(shards)]
    command += ["--run-root", str(tmp_path / "runs"), "--gpus", "0", "--recipes", "alexnet_2012"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )

    refused = run()
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {shards} has 10 classes")
    assert not (tmp_path / "runs").exists()
    done = run("--dry-run")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "runs" / "result.json").read_text())
    (row,) = document["recipes"]
    assert [(count["views"], count["num_images"]) for count in row["counts"]] == [(1, 8), (10, 8)]
    assert row["facts"]["steps"] == 2
    text = (tmp_path / "runs" / "result.md").read_text()
    assert "Dry run: the figures mean nothing" in text
    assert "PASS" not in text
