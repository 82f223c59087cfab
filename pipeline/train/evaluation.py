"""Exact evaluation: every sample of a split once, whatever the number of ranks.

The split is cut into blocks before the blocks are dealt to the ranks, each block is computed by one
thread in fp32, and the answers are put together sample by sample. So 1, 2, 3 or 4 ranks find the
same integers, and a sample that was seen twice or not at all is an error, not a number.
"""

from __future__ import annotations

import contextlib
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
from pipeline.trained.scores import TOP_K, ranked, scores_of_views

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    event: EvalEvent
    predictions: Arrays
    """labels [n], topk_classes [n, k], topk_probabilities [n, k], losses [n]; the samples of the
    split in order."""


class InexactEvaluation(RuntimeError):
    """Some sample was not seen exactly once: the result is worth nothing."""


def evaluate(
    model: nn.Module,
    split: EvaluatedSplit,
    world: World,
    mesh: Mesh,
    *,
    step: int,
    epoch: float,
    by: EvaluatedBy = "train",
    own_shards: bool = True,
    enter: Callable[[Phase], None] = lambda _: None,
) -> Evaluation:
    """Evaluate the plain `model` (no DDP around it) on all samples of `split`, on every rank.

    Each sample's answer is the mean of the softmax probabilities of its views. `step`, `epoch`,
    `by` and `own_shards` are those of the event. `enter` is called with the phase that begins.
    Raises `InexactEvaluation` if the ranks' samples do not make up the split, and what the reader
    raises.
    """
    begin = time.perf_counter()
    rows = _answers_of_ranks(model, split, world, mesh, enter)
    manifest, num_samples = split.data.manifest, split.num_samples
    hits = rows["topk_classes"] == rows["labels"][:, None]
    hits &= np.isfinite(rows["losses"])[:, None]  # what is not a number is not right by luck
    correct1 = int(hits[:, 0].sum())
    correct5 = int(hits.any(axis=1).sum()) if manifest.num_classes > TOP_K else None
    event = EvalEvent(
        step=step,
        epoch=epoch,
        by=by,
        split=split.name,
        views=split.views,
        shard_set=manifest.title,
        manifest_sha256=split.data.manifest_sha256,
        own_shards=own_shards,
        top1=correct1 / num_samples,
        top5=None if correct5 is None else correct5 / num_samples,
        loss=float(rows["losses"].astype(np.float64).mean()),
        correct1=correct1,
        correct5=correct5,
        seen=num_samples,
        expected=num_samples,
        seconds=time.perf_counter() - begin,
    )
    return Evaluation(event=event, predictions=rows)


def _answers_of_ranks(
    model: nn.Module,
    split: EvaluatedSplit,
    world: World,
    mesh: Mesh,
    enter: Callable[[Phase], None],
) -> Arrays:
    """The predictions of all ranks together, by sample number."""
    parts = []
    enter(Phase.EVALUATING)
    with split.open_blocks(mesh) as blocks, _evaluating(model, world.device):
        for batch in blocks:
            enter(Phase.EVALUATING)
            images, labels = batch.to(world.device)
            answers = _answer([model(view) for view in split.viewer(images)], labels)
            answers["samples"] = batch.samples
            parts.append({name: rows[: batch.num_valid] for name, rows in answers.items()})
    enter(Phase.GATHERING)
    gathered = world.all_gather_object(parts if mesh.reports else [])
    parts = [part for parts in gathered for part in parts]
    assert parts, "a split of a shard set is not empty"
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    samples = together.pop("samples")
    order = np.argsort(samples, kind="stable")
    if not np.array_equal(samples[order], np.arange(split.num_samples)):
        raise InexactEvaluation(
            f"the evaluation of {split.name} saw {len(samples)} samples, "
            f"{len(np.unique(samples))} different ones; expected each of {split.num_samples} once"
        )
    return {name: values[order] for name, values in together.items()}


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
    scores = scores_of_views(logits)
    classes = ranked(scores)[:, :TOP_K]
    return {
        "labels": labels.cpu().numpy(),
        "topk_classes": classes.cpu().numpy(),
        "topk_probabilities": scores.gather(1, classes).exp().float().cpu().numpy(),
        "losses": F.nll_loss(scores, labels, reduction="none").float().cpu().numpy(),
    }


def save_predictions(run: RunDirectory, evaluation: Evaluation) -> None:
    """Write the predictions where the report finds them; raises `OSError`."""
    event = evaluation.event
    path = run.predictions(event.split)
    path.parent.mkdir(exist_ok=True)
    with atomic_writer(path) as file:
        arrays: dict[str, Any] = {
            "format_version": PREDICTIONS_VERSION,
            "step": event.step,
            "views": event.views,
            "manifest_sha256": event.manifest_sha256,
            **evaluation.predictions,
        }
        np.savez_compressed(file, **arrays)


def evaluation_line(event: EvalEvent) -> str:
    top5 = "" if event.top5 is None else f"top-5 {event.top5:.2%}  "
    return (
        f"{event.split}: top-1 {event.top1:.2%} ({event.correct1:,} of "
        f"{event.seen:,})  {top5}loss {event.loss:.4f}  in {event.seconds:.1f} s"
    )


def evaluation_table(event: EvalEvent) -> dict[str, str]:
    """What `pipeline.evaluate` found, for its standard output."""
    views = "one view" if event.views == 1 else f"{event.views} views"
    table = {
        "evaluated": f"{event.split} of {event.shard_set}, {event.seen:,} images, {views} of each",
        "top-1": f"{event.top1:.2%} ({event.correct1:,} of {event.seen:,})",
    }
    if event.top5 is not None:
        table["top-5"] = f"{event.top5:.2%} ({event.correct5:,} of {event.seen:,})"
    table |= {"loss": f"{event.loss:.4f}", "time": f"{event.seconds:.1f} s"}
    if not event.own_shards:
        table["note"] = "this is not the shard set that the run was trained on"
    return table
