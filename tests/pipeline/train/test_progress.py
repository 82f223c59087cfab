"""What a checkpoint holds beside the weights."""

from __future__ import annotations

import io
from dataclasses import asdict

import torch

from pipeline.train.progress import Progress


def test_skipped_steps_move_the_data_and_not_the_schedule() -> None:
    progress = Progress()
    for skipped in (False, True, True, False, True):
        progress.step += 1
        progress.settle_step(skipped=skipped)
    assert (progress.step, progress.updates, progress.skipped_steps) == (5, 2, 3)
    assert progress.skipped_in_a_row == 1
    progress.step += 1
    progress.settle_step(skipped=False)
    assert progress.skipped_in_a_row == 0


def test_the_best_is_strictly_better_than_the_one_that_is_marked() -> None:
    progress = Progress()
    found = []
    for top1, top5 in ((0.5, 0.7), (0.4, 0.9), (0.5, 0.8), (0.6, 0.6)):
        progress.step += 10
        is_best = progress.evaluated(loss=1.0 - top1, top1=top1, top5=top5)
        if is_best:
            progress.marked = progress.step, top1
        found.append(is_best)
    assert found == [True, False, False, True]
    assert (progress.best_top1, progress.best_top5, progress.marked) == (0.6, 0.9, (40, 0.6))
    assert progress.losses == [0.5, 0.6, 0.5, 0.4]


def test_a_first_evaluation_with_nothing_right_is_the_best_so_far() -> None:
    progress = Progress()
    assert progress.evaluated(loss=9.0, top1=0.0, top5=0.0)
    assert progress.best_top1 == 0.0


def test_it_survives_a_checkpoint() -> None:
    progress = Progress(step=7, skipped_steps=2, skipped_in_a_row=1)
    progress.evaluated(loss=0.1, top1=1 / 3, top5=0.5)
    progress.marked = 7, 1 / 3
    file = io.BytesIO()
    torch.save(asdict(progress), file)
    file.seek(0)
    assert Progress(**torch.load(file, weights_only=True)) == progress
