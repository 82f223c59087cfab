"""Opens a trained network: of a run, of one checkpoint, or of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from data_prep.shard_set.files import as_text, path_option
from pipeline.config.schema import Config
from pipeline.data.augment.crop_policy import ImageSize, input_size
from pipeline.data.augment.normalize import Normalizer, build_normalizer
from pipeline.data.augment.preprocess import Viewer
from pipeline.model.build import build_model, load_weights
from pipeline.model.network import Network
from pipeline.run import checkpoint
from pipeline.run.dataset import Dataset, dataset_of_run, dataset_of_settings
from pipeline.run.directory import ForkSource, RunDirectory
from pipeline.run.event_log import of_type, read_events
from pipeline.run.events import EvalEvent
from pipeline.run.settings import saved_settings, settings_of
from pipeline.trained.exported import is_export, read_export
from pipeline.trained.stored import (
    Origin,
    StoredNetwork,
    checked_weights,
    sha256_of_weights,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedNetwork:
    """A network that is ready for use, and what it must be given."""

    path: Path
    """Where its weights were read from."""
    model: Network
    """In evaluation mode, fp32, on `device`."""
    config: Config
    dataset: Dataset
    origin: Origin
    device: torch.device

    @property
    def input_size(self) -> ImageSize:
        """Height and width of what the network takes."""
        return input_size(self.config.augment, self.dataset.image_size)

    @property
    def evaluated_size(self) -> ImageSize:
        """Height and width of the images that views are taken from."""
        pixels = self.config.augment.evaluation_pixels
        return self.dataset.image_size or (pixels, pixels)

    def normalizer(self) -> Normalizer:
        dataset = self.dataset
        return build_normalizer(
            self.config.augment, dataset.statistics, dataset.mean_image, self.device
        )

    def viewer(self, num_views: int) -> Viewer:
        """Makes inputs of images of `evaluated_size`; raises `ValueError` if ten coincide."""
        return Viewer(self.config.augment, num_views, self.evaluated_size, self.normalizer())


def open_trained(source: str, device: torch.device | None = None) -> TrainedNetwork:
    """Open the network that `source` names, on `device` (None: the CPU).

    `source` is a run directory, RUN@newest, RUN@best or RUN@STEP, the folder of a checkpoint, or
    that of an export. Raises `ValueError` with one sentence if there is none, it is damaged or
    another version's, or its weights do not fit, and `OSError` if a file cannot be read; nothing in
    its files is executed.
    """
    stored, device = read_stored(source), device or torch.device("cpu")
    dataset, config = stored.dataset, stored.config
    if config.augment.subtracts_mean_image and dataset.mean_image is None:
        raise ValueError(f"{stored.path} has no mean image, which its network was trained with")
    with torch.device("meta"):  # fresh weights would be drawn in vain
        size = input_size(config.augment, dataset.image_size)
        model = build_model(config.model, dataset.num_classes, size)
    model.to_empty(device=device)
    try:
        load_weights(model, stored.weights, column=None)
    except ValueError as error:
        raise ValueError(f"{stored.path}: {error}") from None
    return TrainedNetwork(
        path=stored.path,
        model=model.eval().requires_grad_(False),
        config=config,
        dataset=dataset,
        origin=stored.origin,
        device=device,
    )


def read_stored(source: str) -> StoredNetwork:
    """The weights that `source` names, as `open_trained`, without a network around them."""
    path = path_option(source)
    if is_export(path):
        return read_export(path)
    if (path / checkpoint.FACTS).is_file():
        return _read_checkpoint(path.resolve())
    wanted = ForkSource.parsed(source)
    if not wanted.run.checkpoints.is_dir():
        raise ValueError(
            f"{source} is no trained network: expected a run directory, RUN@best, RUN@STEP, the "
            "folder of a checkpoint, or that of an export with model.safetensors"
        )
    return _read_checkpoint(checkpoint.named(wanted.run.checkpoints, wanted.checkpoint))


def _read_checkpoint(path: Path) -> StoredNetwork:
    """Raises `ValueError`. What the checkpoint itself does not say comes from the run around it."""
    state = checkpoint.load(path)
    saved = saved_settings(state, path)
    try:
        settings = settings_of(saved)
        step, found = state["progress"]["step"], state["model"]
        began = settings.forked_from or settings.initialized_from
        for each, kind in (step, int), (settings.recipe, str), (began, dict | None):
            if not isinstance(each, kind):
                raise TypeError(f"it has {each!r:.40} where {kind} is")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the checkpoint of a run, or another version's ({error}): give one that "
            "pipeline.train saved"
        ) from None
    weights, run = checked_weights(found, path), run_around(path)
    evaluations = [] if run is None else of_type(read_events(run.events), EvalEvent)
    return StoredNetwork(
        path=path,
        weights=weights,
        config=settings.config,
        dataset=dataset_of_settings(settings) if run is None else dataset_of_run(run, settings),
        origin=Origin(
            recipe=settings.recipe,
            run=as_text(path.name if run is None else run.name),
            step=step,
            weights_sha256=sha256_of_weights(weights),
            evaluations=tuple(row for row in evaluations if row.step == step),
            began=began,
        ),
    )


def run_around(path: Path) -> RunDirectory | None:
    """The run whose checkpoint is at `path`; None if it is a copy elsewhere, or an export."""
    run = RunDirectory(path.parent.parent)
    return run if path.parent == run.checkpoints and run.config.is_file() else None
