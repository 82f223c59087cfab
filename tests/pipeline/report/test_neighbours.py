"""The nearest training images in the last hidden layer's space, against float64 by other means."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from data_prep.shard_set.manifest import manifest_sha256
from pipeline.report import hidden_layer, page
from pipeline.report.__main__ import main
from pipeline.report.hidden_layer import HiddenLayer, find_neighbours, nearest
from pipeline.report.images import read_image
from pipeline.report.inputs import Missing, ShardSet, read_shard_set
from pipeline.report.neighbours import (
    Neighbours,
    nearest_images,
    read_neighbours,
    write_neighbours,
)
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import read_saved
from pipeline.trained.network import open_trained
from tests.pipeline.fake_run import write_run
from tests.pipeline.report.html_tree import parse
from tests.pipeline.report.report_page import page_of
from tests.pipeline.trained_run import SHARDS, unpack_usable_run

SAMPLES = (0, 3, 7)
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return RunDirectory(unpack_usable_run(tmp_path_factory.mktemp("trained")))


@pytest.fixture
def run(trained: RunDirectory, tmp_path: Path) -> RunDirectory:
    """With a shard set of its own, so that it can be damaged."""
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(trained.path, run.path)
    shutil.copytree(SHARDS, tmp_path / "shards")
    settings = json.loads(run.config.read_text())
    settings["config"]["data"]["shards"] = str(tmp_path / "shards")
    run.config.write_text(json.dumps(settings))
    return run


def splits(run: RunDirectory) -> tuple[ShardSet, ShardSet]:
    settings = read_saved(run)
    val, train = read_shard_set(settings), read_shard_set(settings, "train")
    assert isinstance(val, ShardSet)
    assert isinstance(train, ShardSet)
    return val, train


def search(run: RunDirectory, num_images: int = 24) -> Neighbours:
    return find_neighbours(run, *splits(run), SAMPLES, num_images)


def nearest_of(found: Neighbours) -> list[list[int]]:
    assert tuple(found.nearest) in (SAMPLES, SAMPLES[:1])
    return [[sample for sample, _ in row] for row in found.nearest.values()]


def reference_hidden(run: RunDirectory, part: ShardSet) -> npt.NDArray[np.float64]:
    """What the last layer of the network is given, all of it computed in float64."""
    network = open_trained(str(run.path))
    images = np.stack([read_image(part, entry) for entry in part.index])
    (view,) = network.viewer(1)(torch.from_numpy(images))
    given: list[torch.Tensor] = []
    last = network.model.get_submodule(network.model.last_layer)
    last.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.inference_mode():
        network.model.double()(view.double())
    hidden: npt.NDArray[np.float64] = given[0].numpy()
    return hidden


def reference(run: RunDirectory, chosen: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """The six nearest of the chosen training images and their distances, by differences."""
    val, train = splits(run)
    queries, hidden = reference_hidden(run, val)[[*SAMPLES]], reference_hidden(run, train)[chosen]
    distances = np.linalg.norm(queries[:, None] - hidden[None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :6]
    return chosen[order], np.take_along_axis(distances, order, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 5, 32])
def test_the_nearest_are_those_of_float64(
    run: RunDirectory, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden_layer, "_BLOCK_IMAGES", block)
    found = search(run)
    samples, distances = reference(run, np.arange(24))
    assert nearest_of(found) == samples.tolist()
    drawn = [[distance for _, distance in row] for row in found.nearest.values()]
    np.testing.assert_allclose(drawn, distances, rtol=1e-4)
    assert (found.num_train, found.num_damaged, found.num_units) == (24, 0, 256)


@pytest.mark.slow
def test_a_part_of_the_images_is_taken_at_equal_distances(run: RunDirectory) -> None:
    found = search(run, 8)
    samples, _ = reference(run, np.arange(0, 24, 3))
    assert nearest_of(found) == samples.tolist()
    assert found.num_searched == 8
    assert search(run, 50_000).num_searched == 24


def test_of_equally_near_images_the_first_ones_are_taken(run: RunDirectory) -> None:
    _, train = splits(run)

    class Same(HiddenLayer):
        def __init__(self) -> None: ...
        def __call__(self, images: Any) -> npt.NDArray[np.float64]:
            return np.ones((len(images), 3))

    found, _ = nearest(Same(), np.zeros((1, 3)), train, range(20))
    assert [sample for _, sample in found[0]] == [*range(6)]


@pytest.mark.slow
def test_what_was_found_is_kept(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(run)
    assert read_neighbours(run.neighbours) == found

    def refuse(_source: str) -> None:
        raise ValueError("it searches")

    monkeypatch.setattr(hidden_layer, "HiddenLayer", refuse)
    assert search(run) == found
    with pytest.raises(ValueError, match="it searches"):
        search(run, 23)
    run.neighbours.write_text("{")
    with pytest.raises(ValueError, match="it searches"):
        search(run)


@pytest.mark.slow
def test_damaged_training_images_are_left_out_and_counted(run: RunDirectory) -> None:
    whole = search(run)
    _, train = splits(run)
    damaged = nearest_of(whole)[0][0]
    entry = train.index[damaged]
    path = train.manifest.split("train").shard_paths(train.path)[entry["shard"]]
    content = bytearray(path.read_bytes())
    content[entry["offset"] : entry["offset"] + 8] = bytes(8)
    path.write_bytes(content)
    found = find_neighbours(run, *splits(run), SAMPLES[:1], 24)
    assert found.num_damaged == 1
    assert nearest_of(found)[0][:5] == nearest_of(whole)[0][1:]


@pytest.mark.slow
def test_the_page_shows_what_is_kept(run: RunDirectory) -> None:
    assert "Not searched so far" in page_of(run).with_id("neighbours").text
    found = search(run)
    write_neighbours(run.neighbours, dataclasses.replace(found, num_train=30, num_damaged=2))
    section = page_of(run).with_id("neighbours")
    assert "at step 60 with 24 of 30 training images" in section.text
    assert ", less 2 damaged ones." in section.text
    val, train = splits(run)
    names = val.manifest.class_names
    for row, sample, near in zip(section.all("li"), SAMPLES, nearest_of(found), strict=True):
        own = names[val.index[sample]["label"]]
        others = [names[train.index[image]["label"]] for image in near]
        assert [image.attributes["alt"] for image in row.all("img")] == [
            f"{own}, validation image {sample}",
            *(f"{name}, training image {image}" for name, image in zip(others, near, strict=True)),
        ]
        marked = ["✓" in caption.text for caption in row.all("figcaption")[1:]]
        assert marked == [name == own for name in others]


def reason(run: RunDirectory) -> str:
    found = nearest_images(run, *splits(run), SAMPLES, 0)
    assert isinstance(found, Missing)
    return found.reason


@pytest.mark.slow
def test_a_kept_file_that_does_not_fit_is_not_shown(run: RunDirectory) -> None:
    found = search(run)
    assert nearest_images(run, *splits(run), SAMPLES, 0) == found
    others: tuple[dict[str, Any], ...] = (
        {"manifest_sha256": "0" * 64},
        {"nearest": {0: [(24, 1.0)]}},
        {"nearest": {10: [(0, 1.0)]}},
    )
    for other in others:
        write_neighbours(run.neighbours, dataclasses.replace(found, **other))
        assert "is of another shard set" in reason(run)
    kept = json.dumps(dataclasses.asdict(found) | {"nearest": {"0": [1]}})
    for wrong in ("{", "[]", '{"step": 1}', '{"format_version": 9}', kept):
        run.neighbours.write_text(wrong)
        assert str(run.neighbours) in reason(run)


@pytest.mark.slow
def test_the_command_searches_and_needs_torch_for_it(run: RunDirectory) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pipeline.report.__main__ import main; "
        f"sys.exit(main([{str(run.path)!r}, '--neighbours', '5']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "The nearest training images are left out: import of torch" in run.report.read_text()
    assert main([str(run.path), "--neighbours", "5"]) == 0
    assert "Compared at step 60 with 5 of 24 training images" in run.report.read_text()
    assert read_neighbours(run.neighbours).num_searched == 5


def test_more_images_than_are_stated_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--neighbours", "50001"])
    assert "50000" in capsys.readouterr().err.replace(",", "")


@pytest.mark.slow
def test_a_page_of_large_images_and_many_classes_is_below_5_mb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that a page can show, of images that are noise: of a picture is less to store."""
    names = [f"kind-{label}" for label in range(60)]
    run = write_run(tmp_path, names, samples_per_class=2, encoding="jpeg", skill=2.0, size=224)
    (val, num_rows, num_near) = read_shard_set(read_saved(run)), 8, hidden_layer.NUM_NEAREST
    assert isinstance(val, ShardSet)
    found = Neighbours(
        step=1,
        state_sha256="",
        manifest_sha256=manifest_sha256(val.path),
        num_searched=50_000,
        num_train=50_000,
        num_damaged=0,
        num_units=4096,
        nearest={
            100 + row: [(num_near * row + near, 1.0) for near in range(num_near)]
            for row in range(num_rows)
        },
    )
    write_neighbours(run.neighbours, found)
    # The run has no split `train`: that of validation stands in for it.
    monkeypatch.setattr(
        page, "read_shard_set", lambda settings, _split=None: read_shard_set(settings)
    )
    text = page.render(run)
    assert len(parse(text).with_id("neighbours").all("img")) == num_rows * (1 + num_near)
    assert len(text.encode()) < 5e6
