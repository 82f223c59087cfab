"""Copies of a state: equal, of their own memory, laid out alike; and when there is no room."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.train import snapshot
from pipeline.train.snapshot import Snapshots

CPU = torch.device("cpu")


def state_of(value: float) -> dict[str, Any]:
    kernels = torch.full((4, 3, 5, 5), value).to(memory_format=torch.channels_last)
    return {
        "model": {"kernels": kernels, "count": torch.tensor(value)},
        "optimizer": {"rates": {"weights": value}, "tensors": {"kernels": {"m": kernels * 2}}},
        "progress": {"losses": [value]},
    }


def test_a_copy_stays_as_it_was_with_its_strides() -> None:
    state = state_of(1.0)
    copied = Snapshots(CPU).take(state)()
    state["model"]["kernels"].zero_()
    state["progress"]["losses"].append(2.0)
    assert copied["progress"] == {"losses": [1.0]}
    assert torch.equal(copied["model"]["kernels"], state_of(1.0)["model"]["kernels"])
    assert copied["model"]["kernels"].stride() == state["model"]["kernels"].stride()
    assert copied["model"]["count"].shape == ()


def test_the_next_copy_is_in_the_same_memory() -> None:
    snapshots = Snapshots(CPU)
    first = snapshots.take(state_of(1.0))()
    second = snapshots.take(state_of(3.0))()
    held = [copied["optimizer"]["tensors"]["kernels"]["m"] for copied in (first, second)]
    assert held[0].data_ptr() == held[1].data_ptr()
    assert torch.equal(held[1], torch.full((4, 3, 5, 5), 6.0))


def test_a_copy_that_does_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "host_free_bytes", lambda: 3_000)
    with pytest.raises(MemoryError, match=r"takes 0\.0 MB .* 0\.0 MB that are free 80% may"):
        Snapshots(CPU).take(state_of(1.0))


def test_an_allocator_that_has_nothing_left_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory. Error code 12")

    snapshots = Snapshots(CPU)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty_strided", refuse)
        with pytest.raises(MemoryError, match=r"no memory .* \(.*can't allocate memory\)$"):
            snapshots.take(state_of(1.0))
    assert torch.equal(snapshots.take(state_of(1.0))()["model"]["count"], torch.tensor(1.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_s_copy_is_of_the_step_it_was_taken_at() -> None:
    state = {"model": {"weight": torch.ones(1 << 24, device="cuda")}}
    copied = Snapshots(torch.device("cuda")).take(state)
    for _ in range(100):
        state["model"]["weight"] += 1
    found = copied()["model"]["weight"]
    assert found.is_pinned()
    assert torch.equal(found, torch.ones(1 << 24))
