"""What does not change while a job is on: labels and gauges that are set once."""

from __future__ import annotations

from dataclasses import dataclass

BUILD_LABELS = ("version", "torch", "cuda")
RUN_LABELS = (
    *("recipe", "model", "columns", "precision", "dataset", "manifest_sha8", "git_revision"),
    "gpu_name",
)
"""Fields of `RunFacts`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What does not change while a job is on; `cuda` and `gpu_name` are "" on a CPU."""

    version: str
    torch: str
    cuda: str
    gpu_name: str
    recipe: str
    model: str
    columns: str
    precision: str
    dataset: str
    """The shard set's title."""
    manifest_sha8: str
    git_revision: str
    """Of the source; "" outside of a checkout."""
    steps_per_epoch: int
    target_epochs: float
    global_batch_size: int
    world_size: int
