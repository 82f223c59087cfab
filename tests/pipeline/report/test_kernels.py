"""Figure 3 of a run: its kernels, pixel by pixel."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pipeline.report.images import Kernels, read_kernels
from pipeline.report.inputs import Missing
from pipeline.report.page import render
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from tests.pipeline.fake_run import write_run

PITCH = 11 * 4 + 4


def weights() -> torch.Tensor:
    return torch.randn(96, 3, 11, 11, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    model = {"conv1.weight": weights(), "conv2.weight": torch.zeros(4, 3, 5, 5)}
    checkpoint.save(run.checkpoints, 30, {"model": model})
    return run


def pixels_of(uri: str) -> npt.NDArray[np.uint8]:
    kind, _, text = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_each_column_has_its_48_kernels_stretched_to_all_shades(run: RunDirectory) -> None:
    found = read_kernels(run, "alexnet_2012")
    assert isinstance(found, Kernels)
    assert (found.step, found.num_kernels, found.size, len(found.uris)) == (30, 96, 11, 2)
    for column, uri in enumerate(found.uris):
        sheet = pixels_of(uri)
        assert sheet.shape == (3 * PITCH - 4, 16 * PITCH - 4, 4)
        for number in range(48):
            top, left = number // 16 * PITCH, number % 16 * PITCH
            cell = sheet[top : top + 44 : 4, left : left + 44 : 4]
            kernel = weights()[48 * column + number].permute(1, 2, 0).double().numpy()
            exact = 255 * (kernel - kernel.min()) / (kernel.max() - kernel.min())
            assert np.abs(cell[..., :3] - exact).max() <= 0.51
            assert (cell[..., 3] == 255).all()


def test_a_network_of_one_column_has_one_sheet(run: RunDirectory) -> None:
    found = read_kernels(run, "alexnet_single")
    assert isinstance(found, Kernels)
    (uri,) = found.uris
    assert pixels_of(uri).shape == (6 * PITCH - 4, 16 * PITCH - 4, 4)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({}, "holds no weights"),
        ({"model": [weights()]}, "holds no weights"),
        ({"model": {"x": torch.zeros(3)}}, "has no kernels of three colours"),
        ({"model": {"x": torch.zeros(96, 3, 0, 0)}}, "has no kernels of three colours"),
        ({"model": {"x": torch.zeros(96, 4, 11, 11)}}, "has no kernels of three colours"),
        ({"model": {"x": torch.full((96, 3, 11, 11), torch.nan)}}, "not finite"),
        ({"model": {"x": torch.zeros(1).expand(1 << 20, 3, 99, 99)}}, "larger than what is stored"),
    ],
)
def test_other_states_have_no_kernels(tmp_path: Path, state: dict[str, Any], why: str) -> None:
    run = RunDirectory(tmp_path)
    checkpoint.save(run.checkpoints, 30, state)
    found = read_kernels(run, "alexnet_2012")
    assert isinstance(found, Missing)
    assert why in found.reason


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_no_kernels(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    test_other_states_have_no_kernels(tmp_path, {"model": {"x": nested}}, "expected dense floats")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_kernels_of_other_precision_are_shown(tmp_path: Path, kind: torch.dtype) -> None:
    run = RunDirectory(tmp_path)
    tensor = torch.nn.Parameter(weights().to(kind))
    checkpoint.save(run.checkpoints, 30, {"model": {"conv1.weight": tensor}})
    assert isinstance(read_kernels(run, "alexnet_2012"), Kernels)


def test_small_kernels_are_not_shown(run: RunDirectory) -> None:
    assert read_kernels(run, "alexnet_cifar") is None
    assert read_kernels(run, None) is None


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_page_without_a_good_checkpoint_says_so(tmp_path: Path, damage: str) -> None:
    run = write_run(tmp_path, ["cat", "dog", "ship"])
    settings = json.loads(run.config.read_text())
    settings["config"]["model"] = {"name": "alexnet_2012"}
    run.config.write_text(json.dumps(settings))
    sentence = "No checkpoint has been saved yet."
    if damage == "flipped":
        path, _ = checkpoint.save(run.checkpoints, 30, {"model": {"conv1.weight": weights()}})
        (path / "state.pt").write_bytes(b"damaged")
        sentence = "The first layer is left out: every checkpoint in"
    page = render(run)
    assert "What the first layer looks for" in page
    assert sentence in page


@pytest.mark.slow
def test_the_page_names_both_columns(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["cat", "dog", "ship"])
    settings = json.loads(run.config.read_text())
    settings["config"]["model"] = {"name": "alexnet_2012"}
    run.config.write_text(json.dumps(settings))
    checkpoint.save(run.checkpoints, 30, {"model": {"conv1.weight": weights()}})
    page = render(run)
    assert "The 96 kernels of the first convolution, 11×11 pixels, at step 30" in page
    assert page.count('<figure class="kernels">') == 2
    assert "Column 1</figcaption>" in page
