"""The search for the nearest training images, in the space of a network's last hidden layer.

Exact: every image is compared, in float64, by a matrix product for each block of them. Only the
best so far are kept, so memory does not grow with their number.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shard_set.decoding import quiet
from data_prep.shard_set.manifest import ShardSetError, manifest_sha256
from data_prep.shard_set.progress import Progress
from pipeline.report.images import read_image
from pipeline.report.inputs import ShardSet
from pipeline.report.neighbours import Neighbours, read_neighbours, write_neighbours
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.trained.classify import Classifier, exact_arithmetic
from pipeline.trained.network import open_trained

NUM_NEAREST = 6
"""As in the paper."""

_BLOCK_IMAGES = 32
"""Images that a thread reads, and the network sees, at once."""

Hidden = npt.NDArray[np.float64]
"""Activations N×units, in float64."""

_Found = list[tuple[float, int]]
"""Distances and samples."""


class HiddenLayer:
    """From images to what the last layer of a network is given: behind ReLU and dropout."""

    def __init__(self, source: str) -> None:
        """Opens the network that `source` names; raises what `open_trained` raises."""
        network = open_trained(source)
        self._reader = Classifier(network, views=1)
        self._viewer = network.viewer(1)
        self._model = network.model
        self._model.set_submodule(network.model.last_layer, torch.nn.Identity())

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]]) -> Hidden:
        """Images H×W×3 of any size, at least one, as an evaluation sees them."""
        batch = torch.from_numpy(np.stack([self._reader.read(image) for image in images]))
        with torch.inference_mode():
            (view,) = self._viewer(batch)
            hidden: Hidden = self._model(view).double().numpy()
        return hidden


def find_neighbours(
    run: RunDirectory,
    shard_set: ShardSet,
    train: ShardSet,
    samples: Sequence[int],
    num_images: int,
) -> Neighbours:
    """The nearest of `num_images` of `train` to each of the `samples`; also kept in the run.

    The network is that of the newest good checkpoint. What is kept already is not searched again.
    Raises `ValueError` and `OSError`.
    """
    path = checkpoint.newest_good(run.checkpoints)
    if path is None:
        raise ValueError(f"{run.checkpoints} has no checkpoint yet")
    num_searched = min(num_images, len(train.index))
    wanted = {
        "step": checkpoint.step_of(path),
        "state_sha256": json.loads((path / checkpoint.FACTS).read_bytes())["sha256"],
        "manifest_sha256": manifest_sha256(train.path),
        "num_searched": num_searched,
    }
    with contextlib.suppress(OSError, ValueError):
        kept = read_neighbours(run.neighbours)
        is_same = all(getattr(kept, name) == value for name, value in wanted.items())
        if is_same and [*kept.nearest] == [*samples]:
            return kept
    hidden_of = HiddenLayer(str(path.absolute()))
    queries = hidden_of([read_image(shard_set, shard_set.index[sample]) for sample in samples])
    chosen = np.arange(num_searched) * len(train.index) // num_searched
    rows, num_damaged = nearest(hidden_of, queries, train, chosen.tolist())
    found = Neighbours(
        **wanted,
        num_train=len(train.index),
        num_damaged=num_damaged,
        num_units=queries.shape[1],
        nearest={
            sample: [(near, distance) for distance, near in row]
            for sample, row in zip(samples, rows, strict=True)
        },
    )
    write_neighbours(run.neighbours, found)
    return found


def nearest(
    hidden_of: HiddenLayer, queries: Hidden, train: ShardSet, chosen: Sequence[int]
) -> tuple[list[_Found], int]:
    """Of the `chosen` samples the nearest to each query, nearest first; of equals the first ones.

    Also how many are damaged and left out. Raises `OSError` if a shard cannot be read.
    """
    best: list[_Found] = [[] for _ in queries]
    num_done = num_damaged = 0
    blocks = [
        chosen[start : start + _BLOCK_IMAGES] for start in range(0, len(chosen), _BLOCK_IMAGES)
    ]
    progress = Progress("nearest training images", "images", sys.stderr)
    with (
        quiet(),
        exact_arithmetic(),
        ThreadPoolExecutor(
            len(os.sched_getaffinity(0)), "hidden", torch.set_num_threads, (1,)
        ) as pool,
    ):
        answers = pool.map(lambda block: _of_block(hidden_of, queries, train, block), blocks)
        for block, (found, damaged) in zip(blocks, answers, strict=True):
            best = [sorted(old + new)[:NUM_NEAREST] for old, new in zip(best, found, strict=True)]
            num_done, num_damaged = num_done + len(block), num_damaged + damaged
            progress.show(num_done, len(chosen))
    progress.close()
    return best, num_damaged


def _of_block(
    hidden_of: HiddenLayer, queries: Hidden, train: ShardSet, block: Sequence[int]
) -> tuple[list[_Found], int]:
    """As `nearest`, of a few samples."""
    images = {}
    for sample in block:
        try:
            images[sample] = read_image(train, train.index[sample])
        except ShardSetError:  # damaged: training leaves it out, too
            continue
    if not images:
        return [[] for _ in queries], len(block)
    hidden, samples = hidden_of(list(images.values())), list(images)
    squares = (queries**2).sum(1)[:, None] + (hidden**2).sum(1) - 2 * queries @ hidden.T
    distances = np.sqrt(np.maximum(squares, 0))
    order = np.argsort(distances, axis=1, kind="stable")[:, :NUM_NEAREST]
    found = [
        [(float(row[place]), samples[place]) for place in places]
        for row, places in zip(distances, order, strict=True)
    ]
    return found, len(block) - len(images)
