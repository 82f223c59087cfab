"""Predictions are those of an evaluation, whatever an image is given as."""

from __future__ import annotations

import io
import json
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.manifest import read_manifest
from data_prep.shard_set.tar_images import walk_images
from pipeline import load_model
from pipeline.evaluate.__main__ import main as evaluate
from pipeline.run.directory import RunDirectory
from pipeline.trained.classify import AnyImage, Classifier
from tests.data_prep.raw_data import encode, jpeg, make_pixels
from tests.integration.training import train_here
from tests.pipeline.trained_run import unpack_usable_run

CLASSES = ("cat", "dog", "owl", "pig", "ray", "yak", "zebra")
SIZES = ((40, 60), (71, 50), (32, 32), (48, 48))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_usable_run(tmp_path_factory.mktemp("classify"))


@pytest.fixture(scope="module")
def model(run: Path) -> Classifier:
    return load_model(run)


def write_images(root: Path, kind: str) -> Path:
    """A folder of images of several sizes."""
    for split, count in (("train", 4), ("val", 7)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = SIZES[(label + number) % len(SIZES)]
                image = Image.fromarray(make_pixels(100 * label + number, height, width))
                image.save(folder / f"{number}.{kind}", quality=92)
    return root


CONVERSIONS: dict[str, tuple[str, tuple[object, ...], tuple[object, ...]]] = {
    "pixels of one size": ("png", ("--encoding", "rgb", "--size", 32), ()),
    "as they are": (
        "jpg",
        ("--encoding", "jpeg"),
        (
            *("--augment.crop_place", "random_resized"),
            *("--augment.crop_pixels", 32, "--augment.evaluation_pixels", 37),
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERSIONS)
def test_raw_files_are_classified_as_their_shard_set_is_evaluated(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # else those of this process change
    kind, conversion, recipe = CONVERSIONS[name]
    images, shards, path = tmp_path / "images", tmp_path / "shards", tmp_path / "run"
    write_images(images, kind)
    words = ("shard", "folder", "--input", images, "--output", shards, *conversion)
    assert data_prep([str(word) for word in words]) == 0
    how = ("--global_batch_size", 8, "--optim.learning_rate", 0.002, "--precision", "fp32")
    assert train_here(shards, path, "--max-steps", 4, *how, *recipe) == 0
    (tar,) = read_manifest(shards).split("val").shard_paths(shards)
    stored = list(walk_images(tar))
    keys = [image.member.name.partition(".")[0].partition("_") for image in stored]
    files = [images / "val" / folder / f"{file}.{kind}" for folder, _, file in keys]
    for views in (1, 10) if recipe else (1,):
        capsys.readouterr()
        assert evaluate(["--run-dir", str(path), "--json", "--views", str(views)]) == 0
        counts = json.loads(capsys.readouterr().out)
        found = load_model(path, views=views)(files)
        labels = np.array([image.label for image in stored])
        ranks = np.array([one.ranking[:5] for one in found])
        assert (ranks[:, 0] == labels).sum() == counts["correct1"]
        assert (ranks == labels[:, None]).any(axis=1).sum() == counts["correct5"]
        assert 0 < counts["correct1"] < counts["correct5"] < counts["seen"] == len(files) == 49
        with np.load(RunDirectory(path).predictions("val")) as saved:
            np.testing.assert_array_equal(ranks, saved["topk_classes"])
            shares = [[share for _, share in one.top(5)] for one in found]
            np.testing.assert_allclose(shares, saved["topk_probabilities"], rtol=1e-5)


def test_an_image_may_be_given_in_any_form(model: Classifier, tmp_path: Path) -> None:
    pixels = make_pixels(height=50, width=70)
    content = encode(Image.fromarray(pixels), "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with Image.open(io.BytesIO(content)) as opened:
        npy = codec_of("rgb").encode(pixels, None)
        forms: list[AnyImage] = [path, str(path), content, opened, pixels, npy]
        expected, *others = [model(form).probabilities for form in forms]
    for other in others:
        np.testing.assert_array_equal(other, expected)
    assert not np.allclose(expected, model(make_pixels(1, 50, 70)).probabilities, rtol=0.1, atol=0)
    assert expected.dtype == np.float32
    assert expected.shape == (len(model.class_names),)
    assert expected.sum() == pytest.approx(1, abs=1e-5)


def test_classes_come_by_their_probability(model: Classifier) -> None:
    one = model(jpeg())
    names = [name for name, _ in one.top(100)]
    shares = [share for _, share in one.top(100)]
    assert sorted(names) == sorted(model.class_names)
    assert shares == sorted(one.probabilities.tolist(), reverse=True)
    assert one.class_name == names[0]
    assert one.top(3) == list(zip(names, shares, strict=True))[:3]


def test_several_are_answered_in_their_order_and_as_alone(model: Classifier) -> None:
    images = [make_pixels(seed, 32, 32) for seed in range(75)]  # several threads' worth
    found = model(images)
    for number in (0, 31, 32, 74):
        np.testing.assert_allclose(
            found[number].probabilities, model(images[number]).probabilities, rtol=1e-3
        )
    assert model([]) == []


def test_what_cannot_be_used_is_named_and_stops_nothing_else(
    model: Classifier, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("text")
    good = make_pixels(height=32, width=32)
    missing = (tmp_path / "missing.jpg").read_bytes
    answers = list(model.each([lambda: good, missing, lambda: good, lambda: jpeg()[:300]]))
    assert [type(answer).__name__ for answer in answers] == [
        *("Prediction", "FileNotFoundError", "Prediction", "ValueError"),
    ]
    with pytest.raises(ValueError, match=r"text\.jpg: not_an_image: it begins with b'text'"):
        model([good, tmp_path / "text.jpg"])
    with pytest.raises(FileNotFoundError, match="missing"):
        model(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match=r"image 1: an image is an array of float64\[2, 2, 3\]"):
        model([good, np.zeros((2, 2, 3))])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"array of uint8\[32, 32\]; expected uint8\[height"):
        model(good[:, :, 0])
    with pytest.raises(TypeError, match="an image of type Tensor; expected a path"):
        model([torch.zeros(3)])  # type: ignore[list-item]


def test_an_answer_that_is_no_number_is_an_error(run: Path) -> None:
    model = load_model(run)
    for weight in model.network.model.parameters():
        weight.fill_(1e38)
    with pytest.raises(ValueError, match="the network's answer is not a number"):
        model(make_pixels(height=32, width=32))


def test_settings_of_the_process_stay_as_they_are(model: Classifier) -> None:
    def settings() -> object:
        return torch.get_num_threads(), torch.backends.cudnn.allow_tf32, warnings.filters[:]

    before = settings()
    model([make_pixels(height=32, width=32)] * 70)
    assert settings() == before


def test_a_model_that_cannot_be_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no trained network"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="views is 3; expected 1 or 10"):
        load_model(run, views=3)
    with pytest.raises(ValueError, match="ten views need images larger"):
        load_model(run, views=10)
    with pytest.raises(ValueError, match="device is 'gpu'; expected a name such as cpu"):
        load_model(run, device="gpu")
