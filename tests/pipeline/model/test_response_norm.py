"""The response norm with its ReLU and pool, against the paper's formula in float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional as F

from pipeline.model import response_norm
from pipeline.model.response_norm import (
    Norm,
    NormalizeAndPool,
    check_compiler,
    missing_kernels,
    normalize_and_pool,
    normalize_and_pool_plain,
)

ROOT = Path(__file__).resolve().parents[3]
CODE, PAPER = 2e-5, 1e-4
"""Their alphas."""
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""The most a result may be off by, as a part of itself."""

each_dtype = pytest.mark.parametrize("dtype", ROUNDING, ids=str)
each_order = pytest.mark.parametrize("relu_first", [True, False])
each_number_of_columns = pytest.mark.parametrize("num_columns", [1, 2])


def maps(
    *shape: int, scale: float = 30.0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> torch.Tensor:
    """Normally distributed, channels-last."""
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(shape, generator=generator)
    return x.to(dtype).to(memory_format=torch.channels_last)


def normalized_by_hand(x: npt.NDArray[np.float64], norm: Norm) -> npt.NDArray[np.float64]:
    """Section 3.3 of the paper, one channel after the other."""
    per_column, half = x.shape[1] // norm.num_columns, norm.size // 2
    normalized = np.empty_like(x)
    for channel in range(x.shape[1]):
        start = channel // per_column * per_column
        first = max(start, channel - half)
        end = min(start + per_column, channel + half + 1)
        squares = (x[:, first:end] ** 2).sum(axis=1)
        normalized[:, channel] = x[:, channel] / (norm.k + norm.alpha * squares) ** 0.75
    return normalized


def windows(normalized: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """N×C×H×W to the nine elements of each window, N×C×H'×W'×9."""
    height, width = ((size - 1) // 2 * 2 - 1 for size in normalized.shape[2:])
    shifted = [
        normalized[:, :, row : row + height : 2, column : column + width : 2]
        for row in range(3)
        for column in range(3)
    ]
    return np.stack(shifted, axis=-1)


def by_hand(x: torch.Tensor, norm: Norm) -> npt.NDArray[np.float64]:
    exact = x.detach().double().numpy()
    rectified = np.maximum(exact, 0) if norm.relu_first else exact
    normalized = normalized_by_hand(rectified, norm)
    pooled: npt.NDArray[np.float64] = np.maximum(windows(normalized).max(axis=-1), 0)
    return pooled


def gradient_for(x: torch.Tensor, norm: Norm, pooled: torch.Tensor) -> torch.Tensor:
    """Some gradient of what is pooled, 0 where rounding decides which element is the largest."""
    ordered = np.sort(windows(normalized_by_hand(x.detach().double().numpy(), norm)), axis=-1)
    is_close = ordered[..., -1] - ordered[..., -2] <= 1e-5 * np.abs(ordered[..., -1])
    gradient = maps(*pooled.shape, scale=1.0, dtype=pooled.dtype, seed=1)
    return gradient.masked_fill(torch.from_numpy(is_close), 0)


def torchs_gradient(x: torch.Tensor, norm: Norm, gradient: torch.Tensor) -> torch.Tensor:
    """By autograd through torch's own layers, in float64."""
    exact = x.detach().double().requires_grad_()
    rectified = exact.relu() if norm.relu_first else exact
    alpha = norm.alpha * norm.size
    columns = [
        F.local_response_norm(column, norm.size, alpha, 0.75, norm.k)
        for column in rectified.chunk(norm.num_columns, dim=1)
    ]
    pooled = F.relu(F.max_pool2d(torch.cat(columns, dim=1), 3, 2))
    (found,) = torch.autograd.grad(pooled, exact, gradient.double())
    return found


def check(x: torch.Tensor, norm: Norm) -> None:
    """Values and gradients."""
    x = x.requires_grad_()
    pooled = normalize_and_pool(x, norm)
    expected = by_hand(x, norm)
    assert pooled.dtype == x.dtype
    assert pooled.shape == expected.shape
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    rounding = ROUNDING[x.dtype]
    np.testing.assert_allclose(pooled.detach().double(), expected, rtol=rounding, atol=1e-6)

    rectified = x.detach().relu() if norm.relu_first else x.detach()
    gradient = gradient_for(rectified, norm, pooled)
    (found,) = torch.autograd.grad(pooled, x, gradient)
    exact = torchs_gradient(x, norm, gradient)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found.double(), exact, rtol=rounding, atol=4e-6)


@pytest.mark.slow
@each_dtype
@each_order
@each_number_of_columns
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("alpha", [CODE, PAPER], ids=["code", "paper"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_values_and_gradients_are_those_of_the_formula(
    dtype: torch.dtype,
    relu_first: bool,
    num_columns: int,
    layout: torch.memory_format,
    alpha: float,
    scale: float,
) -> None:
    """100: conv1 sees pixels of 0 to 255, and the largest of its outputs are above 300."""
    x = maps(3, 96, 11, 8, scale=scale, dtype=dtype).contiguous(memory_format=layout)
    check(x, Norm(num_columns, relu_first, alpha))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "num_columns", "height", "width"),
    [
        (96, 2, 55, 55),
        (48, 1, 55, 55),
        (256, 2, 27, 27),
        (128, 1, 27, 27),
        (256, 1, 13, 13),
        (5, 1, 7, 7),
        (10, 2, 3, 3),
        (6, 2, 3, 6),
        (1, 1, 9, 4),
        (4, 4, 5, 5),
    ],
)
@each_order
def test_every_size(
    channels: int, num_columns: int, height: int, width: int, relu_first: bool
) -> None:
    check(maps(2, channels, height, width), Norm(num_columns, relu_first, CODE))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 9])
def test_other_windows(size: int) -> None:
    check(maps(2, 24, 9, 9), Norm(2, False, alpha=1e-3, size=size, k=1.0))


@pytest.mark.slow
@each_dtype
def test_what_torch_calls_alpha_is_divided_by_the_windows_size(dtype: torch.dtype) -> None:
    x = maps(2, 96, 13, 13, dtype=dtype)
    normalized = F.local_response_norm(x.double(), 5, 1e-4, 0.75, 2.0)
    torch.testing.assert_close(
        normalize_and_pool(x, Norm(1, False, CODE)).double(),
        F.relu(F.max_pool2d(normalized, 3, 2)),
        rtol=ROUNDING[dtype],
        atol=1e-6,
    )


def test_windows_end_at_the_border_between_columns() -> None:
    x = maps(2, 12, 7, 7)
    one, two = Norm(1, False, PAPER), Norm(2, False, PAPER)
    both = normalize_and_pool(x, two)
    apart = [normalize_and_pool(column, one) for column in x.chunk(2, dim=1)]
    assert torch.equal(both, torch.cat(apart, dim=1))
    assert not torch.equal(both, normalize_and_pool(x, one))


def test_constants_without_effect_leave_the_pool() -> None:
    """1 / 16^0.75 is 1/8, and exact."""
    x = maps(2, 20, 9, 9)
    pooled = normalize_and_pool(x, Norm(2, False, alpha=0.0, k=16.0))
    assert torch.equal(pooled, F.relu(F.max_pool2d(x, 3, 2)) / 8)


@pytest.mark.slow
@each_dtype
@each_order
def test_nan_stays_nan(dtype: torch.dtype, relu_first: bool) -> None:
    """Its window's channels with it, in the pools that have its pixel, and no others."""
    x = maps(2, 20, 9, 9, dtype=dtype)
    x[1, 11, 4, 4] = torch.nan
    expected = torch.zeros(2, 20, 4, 4, dtype=torch.bool)
    expected[1, 10:14, 1:3, 1:3] = True
    norm = Norm(2, relu_first, CODE)
    assert torch.equal(normalize_and_pool(x, norm).isnan(), expected)
    assert torch.equal(normalize_and_pool_plain(x, norm).isnan(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0x7F81, 0x7FFF, 0xFF81 - 0x10000, 0xFFFF - 0x10000])
def test_every_nan_stays_nan_in_bfloat16(bits: int) -> None:
    """Rounding adds to the bits: those of some NaNs would become those of an infinity or a 0."""
    x = torch.zeros(1, 5, 3, 3, dtype=torch.bfloat16)
    x.view(torch.int16).fill_(bits)
    assert normalize_and_pool(x, Norm(1, False, CODE)).isnan().all()


@pytest.mark.slow
@each_dtype
@each_order
def test_of_zeros_everything_is_0(dtype: torch.dtype, relu_first: bool) -> None:
    x = torch.zeros(2, 10, 7, 7, dtype=dtype, requires_grad=True)
    pooled = normalize_and_pool(x, Norm(2, relu_first, CODE))
    pooled.sum().backward()
    assert not pooled.any()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.slow
def test_of_equals_the_first_has_the_gradient() -> None:
    x = torch.ones(1, 5, 3, 3, requires_grad=True)
    normalize_and_pool(x, Norm(1, False, CODE)).sum().backward()
    assert x.grad is not None
    assert x.grad[:, :, 0, 0].all()
    assert x.grad.count_nonzero() == 5


@pytest.mark.slow
def test_no_images_are_no_pooled_ones() -> None:
    x = torch.zeros(0, 10, 7, 7, requires_grad=True)
    pooled = normalize_and_pool(x, Norm(2, False, CODE))
    pooled.sum().backward()
    assert pooled.shape == (0, 10, 3, 3)
    assert x.grad is not None


@each_order
def test_float64_stays_float64(relu_first: bool) -> None:
    x = maps(1, 6, 3, 4, dtype=torch.float64).requires_grad_()

    def pool(x: torch.Tensor) -> torch.Tensor:
        return normalize_and_pool(x, Norm(2, relu_first, CODE))

    assert pool(x).dtype == torch.float64
    assert torch.autograd.gradcheck(pool, x)


@pytest.fixture
def any_number_of_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("any_number_of_threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    found = []
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        x = maps(7, 20, 13, 13).requires_grad_()
        pooled = normalize_and_pool(x, Norm(2, False, CODE))
        (gradient,) = torch.autograd.grad(pooled, x, maps(*pooled.shape, seed=1))
        found.append((pooled, gradient))
    for pooled, gradient in found[1:]:
        assert torch.equal(pooled, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.slow
@each_order
def test_compiled_it_is_one_graph(relu_first: bool) -> None:
    layer = NormalizeAndPool(Norm(2, relu_first, CODE))
    x = maps(2, 20, 9, 9).requires_grad_()
    # aot_eager traces forward and backward as every backend does, and needs no C++ compiler.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
    (compiled_gradient,) = torch.autograd.grad(compiled(x).square().sum(), x)
    assert torch.equal(gradient, compiled_gradient)


@pytest.mark.slow
@each_dtype
def test_the_operation_is_what_torch_expects(dtype: torch.dtype) -> None:
    pytest.importorskip("numba")
    x = maps(2, 10, 7, 7, dtype=dtype).requires_grad_()
    norm = Norm(2, False, CODE)
    torch.library.opcheck(response_norm._fused, (x, *norm))
    pooled, places = response_norm._fused(x.detach(), *norm)
    arguments = (torch.ones_like(pooled), x.detach(), places, *norm)
    torch.library.opcheck(response_norm._backward, arguments)


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import torch
from pipeline.model.response_norm import Norm, normalize_and_pool
x = torch.load(sys.argv[1])
pooled = [normalize_and_pool(x, Norm(2, relu_first, 2e-5)) for relu_first in (True, False)]
torch.save(pooled, sys.argv[2])
"""


@pytest.mark.slow
def test_without_numba_the_results_are_the_same(tmp_path: Path) -> None:
    x = maps(2, 20, 13, 13)
    torch.save(x, tmp_path / "x")
    subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA, tmp_path / "x", tmp_path / "pooled"],
        cwd=ROOT,
        check=True,
    )
    before, after = torch.load(tmp_path / "pooled")
    torch.testing.assert_close(before, normalize_and_pool(x, Norm(2, True, CODE)))
    torch.testing.assert_close(after, normalize_and_pool(x, Norm(2, False, CODE)))


def test_a_gpu_without_triton_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(response_norm, "compiler_fault", lambda: None)
    assert missing_kernels(gpu) is None
    check_compiler("on", gpu)
    fault = "Triton is not installed (pip install triton)"
    monkeypatch.setattr(response_norm, "compiler_fault", lambda: fault)
    sentence = missing_kernels(gpu)
    assert sentence is not None
    assert sentence.startswith(fault)
    assert sentence.endswith("results are the same, but take longer")
    assert missing_kernels(torch.device("cpu")) is None
    check_compiler("auto", gpu)
    check_compiler("on", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"compile is on.*pip install triton"):
        check_compiler("on", gpu)
