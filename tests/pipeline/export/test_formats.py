"""What is exported computes what the network computes, where nothing of this project is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipeline.config.recipes import RECIPES
from pipeline.export.formats import content_of
from pipeline.export.onnx_model import OLDEST_OPSET, GraphOptions, build
from pipeline.model.build import build_model
from tests.pipeline.export.networks import NETWORKS, images, logits, network

HERE = Path(__file__).parent
NEWEST_OPSET = onnx.defs.onnx_opset_version()
TORCHVISION_PYTHON = "TORCHVISION_PYTHON"
"""Names an interpreter that has torchvision; this project's environment never has."""

each_network = pytest.mark.parametrize("name", NETWORKS)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """But for rounding, which is far below what tells two images apart."""
    scale = float(np.ptp(expected, axis=0).mean())
    assert scale > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)
    assert np.array_equal(found.argmax(1), expected.argmax(1))


def run_onnx(content: bytes, **inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, inputs)
    return np.asarray(result)


@pytest.mark.slow
@each_network
def test_onnx_runtime_computes_the_same(name: str) -> None:
    exported = network(name)
    pixels = images(exported)
    inputs, expected = logits(exported, pixels)
    for opset in {OLDEST_OPSET, 17, 18, NEWEST_OPSET} if name == "alexnet_2012" else {17}:
        content = content_of("onnx", exported, GraphOptions(opset=opset))
        assert_same(run_onnx(content, images=inputs.numpy()), expected.numpy())
    content = content_of("onnx", exported, GraphOptions(preprocessing=True))
    probabilities = run_onnx(content, images=pixels.numpy())
    assert_same(probabilities, expected.softmax(1).numpy())
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_the_graph_has_standard_operators_only_and_a_norm_for_each_column() -> None:
    graph = build(network("alexnet_2012"), GraphOptions())
    assert [(one.domain, one.version) for one in graph.opset_import] == [("", 17)]
    assert {node.domain for node in graph.graph.node} == {""}
    counts = Counter(node.op_type for node in graph.graph.node)
    assert (counts["Split"], counts["LRN"], counts["Concat"]) == (2, 4, 2)
    for node in graph.graph.node:
        if node.op_type == "LRN":
            found = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            # The 2012 code's alpha before it divides by the five maps of a window, as ONNX does.
            assert found == pytest.approx({"alpha": 1e-4, "beta": 0.75, "bias": 2.0, "size": 5})
    names = {tensor.name for tensor in graph.graph.initializer}
    assert set(network("alexnet_2012").model.state_dict()) <= names


@pytest.mark.parametrize("opset", [0, 9, OLDEST_OPSET - 1, NEWEST_OPSET + 1])
def test_an_opset_that_cannot_be_is_refused(opset: int) -> None:
    with pytest.raises(ValueError, match=rf"--opset is {opset}; expected 13 .* to {NEWEST_OPSET}"):
        build(network("alexnet_cifar"), GraphOptions(opset=opset))


def test_a_layer_without_a_form_in_onnx_is_refused() -> None:
    odd = network("alexnet_cifar")
    features = odd.model.get_submodule("features")
    assert isinstance(features, torch.nn.Sequential)
    features[2] = torch.nn.GELU()
    with pytest.raises(ValueError, match="a layer of type GELU has no form in ONNX here"):
        build(odd, GraphOptions())


@pytest.mark.slow
def test_plain_torch_computes_the_same_without_this_project(tmp_path: Path) -> None:
    expected = {}
    for name in NETWORKS:
        if "," in name:
            continue  # the same layers with other numbers
        exported = network(name)
        inputs, expected[name] = logits(exported, images(exported))
        np.save(tmp_path / f"{name}.in.npy", inputs.numpy())
        (tmp_path / f"{name}.pt2").write_bytes(content_of("pt2", exported, GraphOptions()))
    subprocess.run([sys.executable, "-I", HERE / "plain_torch.py", tmp_path], check=True)
    for name, found in expected.items():
        assert_same(np.load(tmp_path / f"{name}.out.npy"), found.numpy())


def test_names_of_2014_are_torchvision_s() -> None:
    """As its `alexnet` has them, and the file of its published weights."""
    config = RECIPES["alexnet_2014"]().model
    with torch.device("meta"):
        found = build_model(config, 1000, (224, 224)).state_dict()
    layers = [f"features.{place}" for place in (0, 3, 6, 8, 10)]
    layers += [f"classifier.{place}" for place in (1, 4, 6)]
    assert list(found) == [f"{name}.{part}" for name in layers for part in ("weight", "bias")]
    assert found["classifier.1.weight"].shape == (4096, 9216)


@pytest.mark.slow
def test_torchvision_computes_the_same(tmp_path: Path) -> None:
    """Of the network in its full size, as torchvision has no other."""
    python = os.environ.get(TORCHVISION_PYTHON)
    if python is None:
        pytest.skip(f"{TORCHVISION_PYTHON} names no interpreter that has torchvision")
    exported = network("alexnet_2014", units=4096)
    inputs, expected = logits(exported, images(exported))
    np.save(tmp_path / "in.npy", inputs.numpy())
    (tmp_path / "model.pt").write_bytes(content_of("torch", exported, GraphOptions()))
    words = [tmp_path / name for name in ("model.pt", "in.npy", "out.npy")]
    subprocess.run([python, "-I", HERE / "with_torchvision.py", *words], check=True)
    assert_same(np.load(tmp_path / "out.npy"), expected.numpy())
