"""Exact evaluation: every sample of a split once, whatever the number of ranks.

The split is cut into blocks before the blocks are dealt to the ranks, each block is computed by one
thread in fp32, and the answers are put together sample by sample. So 1, 2, 3 or 4 ranks find the
same integers, and a sample that was seen twice or not at all is an error, not a number.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from data_prep.shard_set.files import atomic_writer
from pipeline.data.open import EvaluatedSplit
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World
from pipeline.run.directory import RunDirectory
from pipeline.run.events import EvalEvent, EvaluatedBy
from pipeline.run.format_version import PREDICTIONS_VERSION
from pipeline.run.phase import Phase

TOP_K = 5
"""With this many classes or fewer, top-5 says nothing and is left out."""

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSpec:
    """What is evaluated, and how each image is looked at."""

    split: str
    num_classes: int
    views: int
    """Of each image."""
    shard_set: str
    """Its title."""
    manifest_sha256: str
    own_shards: bool
    """Whether it is the shard set that the run trains on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found; the arrays run over the samples of the split in order."""

    spec: EvaluationSpec
    seen: int
    expected: int
    correct1: int
    correct5: int | None
    """None with `TOP_K` classes or fewer."""
    loss: float
    """Mean cross-entropy."""
    seconds: float
    predictions: Arrays
    """labels [n], topk_classes [n, k], topk_probabilities [n, k], losses [n]."""

    @property
    def top1(self) -> float:
        return self.correct1 / self.seen

    @property
    def top5(self) -> float | None:
        return None if self.correct5 is None else self.correct5 / self.seen

    def event(self, by: EvaluatedBy, *, step: int, epoch: float) -> EvalEvent:
        spec = self.spec
        return EvalEvent(
            step=step,
            epoch=epoch,
            by=by,
            split=spec.split,
            views=spec.views,
            shard_set=spec.shard_set,
            manifest_sha256=spec.manifest_sha256,
            own_shards=spec.own_shards,
            top1=self.top1,
            top5=self.top5,
            loss=self.loss,
            correct1=self.correct1,
            correct5=self.correct5,
            seen=self.seen,
            expected=self.expected,
            seconds=self.seconds,
        )


class InexactEvaluation(RuntimeError):
    """Some sample was not seen exactly once: the result is worth nothing."""


def evaluate(
    model: nn.Module,
    split: EvaluatedSplit,
    world: World,
    mesh: Mesh,
    *,
    own_shards: bool = True,
    enter: Callable[[Phase], None] = lambda _: None,
) -> Evaluation:
    """Evaluate the plain `model` (no DDP around it) on all samples of `split`, on every rank.

    Each sample's answer is the mean of the softmax probabilities of its views. `own_shards` is that
    of the result. `enter` is called with the phase that begins. Raises `InexactEvaluation` if the
    ranks' samples do not make up the split, and what the reader raises.
    """
    begin = time.perf_counter()
    enter(Phase.EVALUATING)
    with split.open_blocks(mesh) as blocks, _evaluating(model, world.device):
        parts = []
        for batch in blocks:
            enter(Phase.EVALUATING)
            images, labels = batch.to(world.device)
            answers = _answer([model(view) for view in split.viewer(images)], labels)
            part = {"samples": batch.samples[: batch.num_valid]}
            part |= {name: value[: batch.num_valid] for name, value in answers.items()}
            parts.append(part)
    enter(Phase.GATHERING)
    answers_of_ranks = world.all_gather_object(parts if mesh.reports else [])
    rows = _concatenate([part for parts in answers_of_ranks for part in parts])
    manifest = split.data.manifest
    spec = EvaluationSpec(
        split=split.name,
        num_classes=manifest.num_classes,
        views=split.views,
        shard_set=manifest.title,
        manifest_sha256=split.data.manifest_sha256,
        own_shards=own_shards,
    )
    return _summarize(spec, rows, split.num_samples, time.perf_counter() - begin)


@contextlib.contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model without dropout and gradients; on a CPU with one thread.

    The number of threads decides how a CPU divides its sums, and so the last bits of the logits.
    """
    was_training, num_threads = model.training, torch.get_num_threads()
    model.eval()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(num_threads)
        model.train(was_training)


def _answer(logits: list[torch.Tensor], labels: torch.Tensor) -> Arrays:
    """What is kept of a block: the logits of each view, N×C, and labels N."""
    # Logarithms in float64: as probabilities, or rounded, what is unlikely would lose its order.
    views = torch.stack([view.double().log_softmax(1) for view in logits])
    scores = views.logsumexp(0) - math.log(len(logits))
    # A stable sort, because topk leaves open which of equal scores comes first.
    classes = scores.sort(dim=1, descending=True, stable=True).indices[:, :TOP_K]
    return {
        "labels": labels.cpu().numpy(),
        "topk_classes": classes.cpu().numpy(),
        "topk_probabilities": scores.gather(1, classes).exp().float().cpu().numpy(),
        "losses": F.nll_loss(scores, labels, reduction="none").float().cpu().numpy(),
    }


def _concatenate(parts: list[Arrays]) -> Arrays:
    """The rows of all parts by sample number."""
    assert parts, "a split of a shard set is not empty"
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(rows["samples"], kind="stable")
    return {name: values[order] for name, values in rows.items()}


def _summarize(spec: EvaluationSpec, rows: Arrays, expected: int, seconds: float) -> Evaluation:
    samples = rows.pop("samples")
    if not np.array_equal(samples, np.arange(expected)):
        raise InexactEvaluation(
            f"the evaluation of {spec.split} saw {len(samples)} samples, "
            f"{len(np.unique(samples))} different ones; expected each of {expected} once"
        )
    hits = rows["topk_classes"] == rows["labels"][:, None]
    hits &= np.isfinite(rows["losses"])[:, None]  # what is not a number is not right by luck
    return Evaluation(
        spec=spec,
        seen=len(samples),
        expected=expected,
        correct1=int(hits[:, 0].sum()),
        correct5=int(hits.any(axis=1).sum()) if spec.num_classes > TOP_K else None,
        loss=float(rows["losses"].astype(np.float64).mean()),
        seconds=seconds,
        predictions=rows,
    )


def save_predictions(run: RunDirectory, step: int, evaluation: Evaluation) -> None:
    """Write the predictions where the report finds them; raises `OSError`."""
    spec = evaluation.spec
    path = run.predictions(spec.split)
    path.parent.mkdir(exist_ok=True)
    with atomic_writer(path) as file:
        arrays: dict[str, Any] = {
            "format_version": PREDICTIONS_VERSION,
            "step": step,
            "views": spec.views,
            "manifest_sha256": spec.manifest_sha256,
            **evaluation.predictions,
        }
        np.savez_compressed(file, **arrays)
