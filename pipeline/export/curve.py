"""The picture of a model card."""

from __future__ import annotations

import importlib.util
import io

from pipeline.run.event_log import of_type, own_evaluations, read_events
from pipeline.run.events import TrainEvent
from pipeline.trained.network import TrainedNetwork, run_around


def draw_curve(network: TrainedNetwork) -> bytes | None:
    """Accuracy over epochs up to these weights, as PNG; None where there is nothing to draw."""
    run = run_around(network.path)
    history = [] if run is None else read_events(run.events)
    events = [row for row in history if row.step <= network.origin.step]
    trained, evaluated = of_type(events, TrainEvent), own_evaluations(events)
    if importlib.util.find_spec("matplotlib") is None or len(trained) + len(evaluated) < 2:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row.epoch for row in trained], [row.top1 for row in trained], label="train top-1")
    axes.plot(
        [row.epoch for row in evaluated], [row.top1 for row in evaluated], "o-", label="val top-1"
    )
    axes.set(xlabel="epoch", ylabel="share of right answers", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
