"""Evaluates the run on `val` while it trains."""

from __future__ import annotations

from pipeline.ranks.failure import sentence_of
from pipeline.train.components import Components
from pipeline.train.evaluation import evaluate, save_predictions


def validate(components: Components) -> float | None:
    """Evaluate `val` and record it; returns its top-1 if that is above the best checkpoint's."""
    progress, journal = components.progress, components.journal
    result = evaluate(
        components.replica.model,
        components.val,
        components.world,
        components.mesh,
        enter=components.enter,
    )
    if components.world.is_main:
        try:
            save_predictions(components.run, progress.step, result)
        except OSError as error:
            journal.console.line(f"warning: predictions not saved: {sentence_of(error)}")
    journal.evaluated(progress.step, result)
    is_best = progress.evaluated(loss=result.loss, top1=result.top1, top5=result.top5)
    return result.top1 if is_best else None
