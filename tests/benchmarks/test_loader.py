"""One tiny round of each competitor that is installed."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.competition import Course, compete
from benchmarks.image_folder import find_images, link_images, shrink_images
from benchmarks.loader import Contest, main, make_contest
from benchmarks.rivals.rounds import Setting
from data_prep.shard_set.compiled import is_compiled


@pytest.fixture(scope="module")
def shrunk(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shrunk")
    return link_images(shrink_images(find_images(images), root / "flat"), root / "256", 24)


def run(contest: Contest, names: list[str], setting: Setting, images: Path, scratch: Path) -> None:
    """Have these compete for a round; all must have a figure."""
    chosen = [
        dataclasses.replace(competitor, num_images=48)
        for competitor in contest.competitors
        if competitor.name in names
    ]
    result = compete(chosen, Course(images=images, setting=setting, scratch=scratch), 1)
    assert not result.failed
    assert not result.missing
    assert list(result.rates) == names
    assert all(rate > 0 for (rate,) in result.rates.values())


def test_readers_of_the_originals(images: Path, tmp_path: Path) -> None:
    root = link_images(find_images(images), tmp_path / "linked", 24)
    contest = make_contest("original", root, {})
    limits = ["limit", *(["limit, cropped"] if is_compiled() else [])]
    names = [*limits, "webdataset + Pillow", "folder + Pillow"]
    run(contest, names, "original", root, tmp_path)


def test_ours_of_jpegs(images: Path, shrunk: Path, tmp_path: Path) -> None:
    root = link_images(find_images(images), tmp_path / "linked", 24)
    contest = make_contest("jpeg256", root, {})
    converted = f"ours, {'restart 2, ' if is_compiled() else ''}4:4:4"
    run(contest, ["ours", converted], "jpeg256", shrunk, tmp_path)


@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
def test_ours_of_planes_and_of_pixels_on_two_ranks_and_their_limits(
    shrunk: Path, tmp_path: Path
) -> None:
    names = [f"{name}, planes, 1 × 2 threads" for name in ("limit, ring", "ours")]
    names += [f"{name}, 2 × 1 threads" for name in ("limit", "limit, ring", "ours")]
    run(make_contest("raw256", shrunk, {}), names, "raw256", shrunk, tmp_path)


@pytest.mark.ffcv
@pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed")
def test_ffcv(shrunk: Path, tmp_path: Path) -> None:
    run(make_contest("raw256", shrunk, {}), ["ffcv, no flip"], "raw256", shrunk, tmp_path)


@pytest.mark.parametrize("setting", ["original", "jpeg256", "raw256"])
def test_ours_are_measured_by_all_others_that_take_part(setting: Setting, tmp_path: Path) -> None:
    contest = make_contest(setting, tmp_path, {})
    names = [competitor.name for competitor in contest.competitors]
    assert len(set(names)) == len(names)
    measured = {other for others in contest.measured_by.values() for other in others}
    assert set(contest.measured_by) | measured <= set(names)
    if contest.measured_by:
        assert set(contest.measured_by) | measured == set(names)


def test_an_interpreter_goes_to_the_rival_that_it_is_for(tmp_path: Path) -> None:
    contest = make_contest("original", tmp_path, {"dali": "/elsewhere/python"})
    pythons = {competitor.module: competitor.python for competitor in contest.competitors}
    assert pythons.pop("benchmarks.rivals.dali_loader") == "/elsewhere/python"
    assert "/elsewhere/python" not in pythons.values()


@pytest.mark.parametrize("text", ["dali", "dali=/nowhere/python", "torch=/bin/sh"])
def test_an_interpreter_that_is_none_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--images", str(tmp_path), "--python", text])
    assert f"'{text}' is not NAME=INTERPRETER" in capsys.readouterr().err
