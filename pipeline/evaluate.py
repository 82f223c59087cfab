"""Exact evaluation: every sample of a split once, whatever the number of ranks.

    torchrun --nproc_per_node=N -m pipeline.evaluate --run-dir RUN [--split val]

The split is cut into blocks before the blocks are dealt to the ranks, each block is computed by one
thread in fp32, and the answers are put together sample by sample. So 1, 2, 3 or 4 ranks find the
same integers, and a sample that was seen twice or not at all is an error, not a number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from data_prep.files import atomic_writer, expanded, path_option
from data_prep.manifest import manifest_sha256
from pipeline import checkpoint
from pipeline.config import Config, is_url, located
from pipeline.data.framing import input_size
from pipeline.data.loader import Loader, evaluation_requests
from pipeline.data.normalize import build_normalizer
from pipeline.data.partition import evaluation_blocks
from pipeline.data.preprocess import Viewer
from pipeline.data.reading import Reader
from pipeline.data.shard_set import ShardSet
from pipeline.data.staging import staged_reader
from pipeline.distributed import Place, World, connect, failure_of_all
from pipeline.failure import exit_code_of, leave, sentence_of
from pipeline.grid import Grid, build_grid
from pipeline.model import build_model
from pipeline.overrides import with_values
from pipeline.replica import load_weights
from pipeline.run_directory import RunDirectory
from pipeline.settings import Settings, check_shard_set, read_settings
from pipeline.watchdog import Phase

TOP_K = 5

_TELLING_SECONDS = 3

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found; the arrays run over the samples of the split in order."""

    split: str
    seen: int
    expected: int
    correct1: int
    correct5: int
    loss: float
    """Mean cross-entropy."""
    seconds: float
    predictions: Arrays
    """labels [n], topk_classes [n, k], topk_probabilities [n, k], losses [n]."""

    @property
    def top1(self) -> float:
        return self.correct1 / self.seen

    @property
    def top5(self) -> float:
        return self.correct5 / self.seen

    def event(self) -> dict[str, Any]:
        """The fields of an `eval` event."""
        names = ("split", "top1", "top5", "loss", "correct1", "correct5", "seen", "expected")
        return {name: getattr(self, name) for name in (*names, "seconds")}


class InexactEvaluation(RuntimeError):
    """Some sample was not seen exactly once: the result is worth nothing."""


def evaluate(
    model: nn.Module,
    reader: Reader,
    viewer: Viewer,
    world: World,
    grid: Grid,
    *,
    split: str,
    block_size: int,
    depth: int,
    enter: Callable[[Phase], None] = lambda _: None,
) -> Evaluation:
    """Evaluate the plain `model` (no DDP around it) on all samples of `reader`, on every rank.

    Each sample's answer is the mean of the softmax probabilities of its views. `enter` is told what
    this rank is at. Raises `InexactEvaluation` if the ranks' samples do not make up the split, and
    what the reader raises.
    """
    begin = time.perf_counter()
    enter(Phase.EVALUATING)
    blocks = evaluation_blocks(reader.num_samples, block_size, grid.num_replicas, grid.replica)
    loader = Loader(
        reader,
        evaluation_requests(blocks),
        batch_size=block_size,
        depth=depth,
        pad=True,
        pin_memory=world.device.type == "cuda",
    )
    with loader, _evaluating(model, world.device):
        parts = []
        for batch in loader:
            enter(Phase.EVALUATING)
            images, labels = batch.to(world.device)
            answers = _answer([model(view) for view in viewer(images)], labels)
            part = {"samples": batch.samples[: batch.num_valid]}
            part |= {name: value[: batch.num_valid] for name, value in answers.items()}
            parts.append(part)
    enter(Phase.GATHERING)
    answers_of_ranks = world.gather(parts if grid.reports else [])
    rows = _concatenate([part for parts in answers_of_ranks for part in parts])
    return _summarize(split, rows, reader.num_samples, time.perf_counter() - begin)


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


def _summarize(split: str, rows: Arrays, expected: int, seconds: float) -> Evaluation:
    samples = rows.pop("samples")
    if not np.array_equal(samples, np.arange(expected)):
        raise InexactEvaluation(
            f"the evaluation of {split} saw {len(samples)} samples, {len(np.unique(samples))} "
            f"different ones; expected each of {expected} once"
        )
    hits = rows["topk_classes"] == rows["labels"][:, None]
    hits &= np.isfinite(rows["losses"])[:, None]  # what is not a number is not right by luck
    return Evaluation(
        split=split,
        seen=len(samples),
        expected=expected,
        correct1=int(hits[:, 0].sum()),
        correct5=int(hits.any(axis=1).sum()),
        loss=float(rows["losses"].astype(np.float64).mean()),
        seconds=seconds,
        predictions=rows,
    )


def save_predictions(run: RunDirectory, step: int, evaluation: Evaluation) -> None:
    """Write the predictions where the report finds them; raises `OSError`."""
    path = run.predictions(evaluation.split)
    path.parent.mkdir(exist_ok=True)
    with atomic_writer(path) as file:
        arrays: dict[str, Any] = {"step": step, **evaluation.predictions}
        np.savez_compressed(file, **arrays)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        description="Evaluate a run's checkpoint exactly, on any number of ranks.",
    )
    parser.add_argument("--run-dir", type=path_option, required=True, help="the run's directory")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument(
        "--checkpoint",
        type=expanded,
        default="newest",
        help="newest, best, a step or a checkpoint's path; default: %(default)s",
    )
    parser.add_argument(
        "--views",
        type=int,
        choices=(1, 10),
        help="1: the middle of each image, 10: the ten views of 2012; default: as in training",
    )
    parser.add_argument(
        "--shards", type=located, help="where the shard set is now, if it was moved"
    )
    parser.add_argument(
        "--cache-dir", type=located, help="where shards at a URL are staged on this host"
    )
    return parser


def _with_shards(config: Config, shards: str | None, cache_dir: str | None) -> Config:
    """The configuration for a shard set, or a cache of it, that was moved, if it was."""
    values: dict[str, object] = {}
    if shards is not None:
        values |= {"data.shards": shards, "data.reader": "remote" if is_url(shards) else "tar"}
    if cache_dir is not None:
        values["data.cache_dir"] = cache_dir
    return with_values(config, values, {"data.cache_dir": "--cache-dir"})


def _evaluate_run(
    options: argparse.Namespace,
    run: RunDirectory,
    settings: Settings,
    world: World,
    resources: contextlib.ExitStack,
) -> None:
    config = settings.config
    world.check_alike({"--split": options.split, "--views": options.views})
    with world.together():
        config = _with_shards(config, options.shards, options.cache_dir)
        shards = ShardSet.opened(config.data, resources)
        manifest, found = shards.manifest, manifest_sha256(shards.folder)
        check_shard_set(settings.manifest_sha256, found, config.data.shards, run.path)
        reader = staged_reader(config, shards, options.split)
        resources.callback(reader.close)
        size = input_size(config.augment, manifest.image_size)
        model = build_model(config.model, manifest.num_classes, size)
        num_views = options.views or config.evaluation.views
        normalizer = build_normalizer(config.augment, manifest, shards.folder, world.device)
        viewer = Viewer(config.augment, num_views, reader.image_shape[:2], normalizer)
        chosen = _load(model, run, settings, options.checkpoint) if world.is_main else None
    # From rank 0: a run that goes on saves and deletes, and ranks could choose differently.
    world.spread(model.to(world.device).state_dict().values())
    result = evaluate(
        model,
        reader,
        viewer,
        world,
        build_grid(world, "fused", config.distributed.timeout_seconds),
        split=options.split,
        block_size=config.evaluation.block_size,
        depth=config.data.prefetch_batches,
    )
    if chosen is not None:
        _tell(run, *chosen, result)


def _load(model: nn.Module, run: RunDirectory, settings: Settings, name: str) -> tuple[Path, int]:
    """Put the weights of the checkpoint `name` into `model`; returns its path and step.

    Raises `ValueError` if it is not there, damaged or of another run.
    """
    while True:
        path = checkpoint.named(run.checkpoints, name)
        try:
            state = checkpoint.load(path)
            break
        except checkpoint.CheckpointError:
            if path.exists():
                raise  # else the run has deleted it since: choose again
    settings.check_continues(json.loads(state["settings"]), path)
    load_weights(model, state["model"], column=None)
    return path, state["progress"]["step"]


def _tell(run: RunDirectory, path: Path, step: int, result: Evaluation) -> None:
    """Print the result, and save the predictions if the checkpoint at `path` is in the run."""
    row = {"checkpoint": str(path), "step": step, **result.event()}
    sys.stdout.write(json.dumps(row) + "\n")
    if path.resolve().parent != run.checkpoints.resolve():
        return
    try:
        save_predictions(run, step, result)
    except OSError as error:
        sys.stderr.write(f"warning: predictions not saved: {sentence_of(error)}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    run = RunDirectory(options.run_dir)
    signal.signal(signal.SIGTERM, _leave_soon)

    def body() -> int:
        place = Place.from_environment()
        try:
            settings = read_settings(run)
        except ValueError as error:
            raise failure_of_all(place, error) from None
        with (
            connect(place, settings.config.distributed) as world,
            contextlib.ExitStack() as resources,
        ):
            _evaluate_run(options, run, settings, world, resources)
        return 0

    return exit_code_of(body)


def _leave_soon(_number: int, _frame: FrameType | None) -> None:
    """A rank that torchrun ends because another one has failed shall have time to say why."""
    signal.alarm(_TELLING_SECONDS)


if __name__ == "__main__":
    leave(main())
