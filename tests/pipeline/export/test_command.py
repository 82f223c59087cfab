"""The command: a run of an older version to a folder that others use, or one sentence why not."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import manifest_sha256, read_manifest
from pipeline.export.__main__ import main, whole_folder
from pipeline.export.card import write_card
from pipeline.export.onnx_model import GraphOptions, build
from pipeline.run.dataset import Dataset, write_dataset
from pipeline.trained.network import open_trained
from tests.formats.fixtures import REPOSITORY, RUN_SHARDS, VERSIONS, rows_of, unpack_run
from tests.machine import small_disk
from tests.pipeline.export.test_formats import run_onnx

SHARDS = VERSIONS[0] / "shards" / RUN_SHARDS
STEP = 60
ALL = "safetensors,torch,onnx,pt2"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the file that a run has kept of its shard set since it was made."""
    run = unpack_run(VERSIONS[0], tmp_path_factory.mktemp("export"))
    manifest, sha256 = read_manifest(SHARDS), manifest_sha256(SHARDS)
    write_dataset(run, Dataset.of_shards(SHARDS, manifest, sha256, with_mean_image=False))
    return run


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    folder = run.parent / "exported"
    assert main([f"{run}@{STEP}", "--to", str(folder), "--format", ALL, "--preprocessing"]) == 0
    return folder


def failure(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, words))) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("error: ")


def val() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 N×H×W×3 and labels of the split, read without the product's readers."""
    split = read_manifest(SHARDS).split("val")
    rows, paths = read_index(SHARDS, split), split.shard_paths(SHARDS)
    contents = []
    for row in rows:
        with paths[row["shard"]].open("rb") as file:
            file.seek(int(row["offset"]))
            contents.append(np.lib.format.read_array(file))
    return np.stack(contents), np.asarray(rows["label"])


def last_evaluation(run: Path) -> dict[str, Any]:
    return [row for row in rows_of(run) if row["kind"] == "eval" and row["step"] == STEP][-1]


@pytest.mark.slow
def test_the_graph_finds_the_run_s_integers(run: Path, exported: Path) -> None:
    images, labels = val()
    probabilities = run_onnx((exported / "model.onnx").read_bytes(), images=images)
    found = np.argsort(-probabilities, axis=1, kind="stable")
    event = last_evaluation(run)
    assert event["seen"] == len(labels)
    assert (found[:, 0] == labels).sum() == event["correct1"]
    assert (found[:, :5] == labels[:, None]).any(axis=1).sum() == event["correct5"]


@pytest.mark.slow
def test_an_export_is_opened_as_the_run_is(run: Path, exported: Path) -> None:
    ours, found = open_trained(f"{run}@{STEP}"), open_trained(str(exported))
    assert found.origin == ours.origin
    assert found.config == ours.config
    assert found.dataset.class_names == ours.dataset.class_names
    state = ours.model.state_dict()
    plain = torch.load(exported / "model.pt", weights_only=True)
    packed = load_file(exported / "model.safetensors")
    assert list(plain) == list(state)
    for name, tensor in state.items():
        for other in (plain, packed, found.model.state_dict()):
            assert torch.equal(other[name], tensor)
    again = exported.with_name("again")
    assert main([str(exported), "--to", str(again)]) == 0
    assert (again / "model.safetensors").read_bytes() == (
        exported / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_count_on_another_shard_set_alone_is_repeated_on_that_one(
    exported: Path, tmp_path: Path
) -> None:
    network = open_trained(str(exported))
    others = tuple(row for row in network.origin.evaluations if not row.own_shards)
    assert others
    origin = dataclasses.replace(network.origin, evaluations=others)
    network = dataclasses.replace(network, origin=origin)
    write_card(network, tmp_path, ("safetensors",), GraphOptions())
    assert "SHARDS the shard set with the hash above." in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_the_card_says_the_integers_and_the_command_that_repeats_them(
    run: Path, exported: Path
) -> None:
    card, event = (exported / "README.md").read_text(), last_evaluation(run)
    header, rest = card.removeprefix("---\n").split("---\n", 1)
    assert header.startswith("pipeline_tag: image-classification\n")
    assert f"value: {event['top1']:.6f}" in header
    assert f"Top-1 **{event['correct1']} of {event['seen']} (" in rest
    (_, other) = re.findall("^- `val` of generated shapes(.*), views", rest, re.MULTILINE)
    assert "another shard set" in other, "each is said once, that of another shard set last"
    assert manifest_sha256(SHARDS) in rest
    assert "SHARDS the shard set that is described below." in rest
    assert "python -m pipeline.train cifar10 " in rest
    assert "--optim.learning_rate 0.0625" in rest
    for name in re.findall(r"`(model\.\w+)`|\]\((\S+)\)", rest):
        assert (exported / "".join(name)).stat().st_size > 0
    (command,) = re.findall(r"^    python (-m pipeline\.evaluate .*)$", rest, re.MULTILINE)
    places = {"EXPORT": str(exported), "SHARDS": str(SHARDS)}
    words = [places.get(word, word) for word in shlex.split(command)]
    done = subprocess.run(
        [sys.executable, *words, "--json"], cwd=REPOSITORY, capture_output=True, check=True
    )
    found = json.loads(done.stdout)
    assert (found["correct1"], found["correct5"]) == (event["correct1"], event["correct5"])
    plain = run.parent / "plain"
    assert main([f"{run}@{STEP}", "--to", str(plain), "--format", "torch"]) == 0
    assert f"--run-dir RUN --checkpoint {STEP} --split val" in (plain / "README.md").read_text()


def test_the_card_names_where_the_weights_began(run: Path, tmp_path: Path) -> None:
    folder, card = tmp_path / "export", tmp_path / "again" / "README.md"
    assert main([str(run), "--to", str(folder)]) == 0
    began = {"source": "/home/me/alexnet.pth", "path": "/home/me/alexnet.pth", "new_layer": None}
    with_config(began=began)(folder)
    assert main([str(folder), "--to", str(card.parent)]) == 0
    assert " It began with the weights of `alexnet.pth`.\n" in card.read_text()


def test_names_stay_names(run: Path, tmp_path: Path) -> None:
    odd, folder = tmp_path / "\U0001f600: \"a'\n- b \udcff", tmp_path / "export"
    shutil.copytree(run, odd, symlinks=True)
    assert main([str(odd), "--to", str(folder)]) == 0
    name = odd.name.replace("\udcff", "\ufffd")
    assert open_trained(str(folder)).origin.run == name
    _, header, rest = (folder / "README.md").read_text().split("---\n", 2)
    (model,) = yaml.safe_load(header)["model-index"]
    assert model["name"] == name.replace("\n", "\\n")
    assert f"of the run `{model['name']}`" in rest


def test_an_export_in_a_run_has_not_its_curve(run: Path, tmp_path: Path) -> None:
    inside = run / "exports" / "first"
    inside.parent.mkdir()
    assert main([str(run), "--to", str(inside)]) == 0
    assert (inside / "curve.png").is_file()
    assert main([str(inside), "--to", str(tmp_path / "again")]) == 0
    assert not (tmp_path / "again" / "curve.png").exists()


def test_preprocessing_is_said_in_numbers(exported: Path) -> None:
    found = json.loads((exported / "config.json").read_bytes())["preprocessing"]
    statistics = read_manifest(SHARDS).statistics
    assert found["mean"] == pytest.approx(statistics.mean, rel=1e-5)
    assert found["std"] == pytest.approx(statistics.std, rel=1e-5)
    assert found["middle_crop"] == [32, 32]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--opset", "17"], "--opset has an effect only with --format onnx: leave it out"),
        (["--preprocessing"], "--preprocessing has an effect only with --format onnx"),
        (["--format", "onnx", "--opset", "9"], "--opset is 9; expected 13 (older ones lack"),
        (["--format", "onnx", "--opset", "0"], "--opset is 0; expected 13 (older ones lack"),
        (["--format", "safetensors,onnx", "--opset", "99"], "--opset is 99; expected 13"),
    ],
)
def test_options_that_cannot_be_leave_nothing(
    run: Path, words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in failure(capsys, run, "--to", tmp_path / "new", *words)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_a_usage_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(run), "--to", "new", "--format", "onx"])
    expected = "--format is 'onx'; expected safetensors, torch, onnx, pt2; did you mean onnx?"
    assert expected in capsys.readouterr().err


def test_a_folder_in_use_is_left_as_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used, file = tmp_path / "used", tmp_path / "file"
    used.mkdir()
    (used / "mine").write_text("mine")
    file.write_text("mine")
    said = failure(capsys, run, "--to", used)
    assert said == f"--to {used} is not empty: give a new or an empty folder"
    assert "is a file: give a new or an empty folder" in failure(capsys, run, "--to", file)
    assert "is no folder; make it first" in failure(capsys, run, "--to", used / "no" / "new")
    assert [path.name for path in used.iterdir()] == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "used"]
    with pytest.raises(ValueError, match="is not empty"), whole_folder(tmp_path / "both"):
        (tmp_path / "both" / "theirs").mkdir(parents=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "file", "used"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(run), "--to", str(empty)]) == 0
    assert (empty / "README.md").is_file()


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "6m"):
        said = failure(capsys, run, "--to", tmp_path / "disk/new", "--format", "safetensors,torch")
        assert said.endswith("model.pt: No space left on device")
        assert not list((tmp_path / "disk").iterdir())


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))

    return change


def with_statistics(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_bytes())["dataset"]
        with_config(dataset=data | {"statistics": data["statistics"] | changes})(folder)

    return change


def with_weights(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(content(path.read_bytes()))

    return change


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.0.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")


def other_values(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.0.bias"][0] += 1
    save_file(weights, folder / "model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer": (with_config(format_version=2), "has format version 2; this program reads up to"),
    "another config": (with_config(config={"odd": 1}), "was saved by another version: odd is"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "no evaluations": (with_config(evaluations=3), "is not as an export wrote it"),
    "no dataset": (with_config(dataset=None), "is damaged"),
    "text": (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
    "an infinite step": (with_config(step=math.inf), "is not as an export wrote it (step is inf)"),
    "a text as its beginning": (with_config(began="x"), "is not as an export wrote it (began is"),
    "two colours": (
        with_statistics(mean=[1, 1], std=[1, 1, 1, 1]),
        "(statistics.mean is (1, 1), expected tuple[float, float, float])",
    ),
    "colours that are no numbers": (
        with_statistics(std=[True] * 3),
        "(an entry of statistics.std is True, expected float)",
    ),
    "cut": (with_weights(lambda content: content[: len(content) // 2]), "is damaged"),
    "empty": (with_weights(lambda _: b""), "is damaged"),
    "a header too long": (with_weights(lambda _: struct.pack("<Q", 1 << 60)), "is damaged"),
    "NaN": (not_a_number, "classifier.0.bias has values that are not finite"),
    "other weights": (other_values, "does not hold the weights that config.json beside it names"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_export_is_refused_in_one_sentence(
    run: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, sentence = DAMAGE[name]
    folder = tmp_path / "export"
    assert main([str(run), "--to", str(folder)]) == 0
    damage(folder)
    said = failure(capsys, folder, "--to", tmp_path / "new")
    assert sentence in said
    assert not said.endswith(("file): export again", "copy): export again")), "one piece of advice"
    assert not (tmp_path / "new").exists()


def test_classes_that_are_others_do_not_fit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "export"
    assert main([str(run), "--to", str(folder)]) == 0
    dataset = json.loads((folder / "config.json").read_bytes())["dataset"]
    with_config(dataset=dataset | {"class_names": ["cat", "dog"]})(folder)
    said = failure(capsys, folder, "--to", tmp_path / "new")
    assert "weights do not fit this network (size mismatch for classifier.6." in said


def test_the_same_export_has_the_same_bytes(run: Path, tmp_path: Path) -> None:
    network = open_trained(str(run))
    first, second = (build(network, GraphOptions()).SerializeToString() for _ in range(2))
    assert first == second
    for name in ("a", "b"):
        assert main([str(run), "--to", str(tmp_path / name), "--format", "safetensors,torch"]) == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
