"""`python -m launch plan RECIPE …`: what a training would take, from constants that were measured.

Nothing is guessed: what a run has not measured has to be given.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.fields import above, at_least, within, wrong
from data_prep.shard_set.manifest import MANIFEST_NAME, read_manifest
from data_prep.shard_set.options import Named, Rest
from data_prep.shard_set.streams import say
from launch.forecast import Costs
from launch.options import refuse_misplaced
from launch.planned import Constants, Plan, planned
from launch.runs import existing
from pipeline.config.command_line import parse_words, with_values
from pipeline.config.recipes import recipe_config
from pipeline.config.schema import FIELDS, Config
from pipeline.run.dataset import read_dataset
from pipeline.run.event_log import read_rows
from pipeline.run.measured import RunCosts, costs_of
from pipeline.run.settings import read_settings

Seconds = Annotated[float | None, at_least(0)]
_Count = Annotated[int | None, at_least(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Say what a training would take: steps, hours, network, storage; and how often to save."""

    from_run: Annotated[Path | None, Named("--from-run", "RUN")] = None
    """Take what is not given from this run: what it has measured, its ranks, data and recipe."""
    ranks: _Count = None
    """Ranks of the job: GPUs, where it has any."""
    nodes: Annotated[int, at_least(1)] = 1
    """Number of nodes."""
    mtbf_hours: Annotated[float | None, above(0)] = None
    """Mean hours between two failures of one node; if not given, none fails."""
    step_seconds: Annotated[float | None, above(0)] = None
    """Of a step on these ranks, waiting for data and other ranks included."""
    save_seconds: Seconds = None
    """From the beginning of a save until it counts."""
    save_wait_seconds: Seconds = None
    """How long steps wait for a save; with --save-seconds alone, until it counts."""
    evaluation_seconds: Seconds = None
    """Of an evaluation."""
    best_ratio: Annotated[float | None, within(0, 1)] = None
    """Share of evaluations that are the best so far, after which a run saves; if not measured
    either, none."""
    start_seconds: Seconds = None
    """From the start of the job to its first step."""
    restart_seconds: Seconds = None
    """From a failure to the next step; if not measured either, as a start."""
    kept_ratio: Annotated[float | None, within(0, 1)] = None
    """Share of failures that ranks survive in memory, with --distributed.warm_restarts; if not
    measured either, none."""
    warm_seconds: Seconds = None
    """From such a failure to the next step."""
    samples: _Count = None
    """Images of the train split; if not given, those of --data.shards or of the run."""
    classes: _Count = None
    """Number of classes; if not given, as the images."""
    json: bool = False
    """Print it as JSON, for programs."""
    command: Annotated[tuple[str, ...], Rest("RECIPE …")] = ()
    """The recipe and options of training; if not given, those of the run."""


def run(options: Options) -> None:
    """Raises `ValueError` if a constant is neither measured nor given."""
    plan = plan_of(options)
    say(*([json.dumps(plan.to_json())] if options.json else plan.lines()))


def plan_of(options: Options) -> Plan:
    """Raises `ValueError` with all that is missing."""
    costs, config, classes = RunCosts(), None, options.classes
    if options.from_run is not None:
        source = existing(options.from_run)
        costs, config = costs_of(read_rows(source.events)), read_settings(source).config
        with contextlib.suppress(FileNotFoundError):  # of an older version
            classes = classes or len(read_dataset(source.path).class_names)
    if options.command:
        refuse_misplaced("python -m launch plan", (Options,), options.command)
        recipe, *words = options.command
        given = parse_words(words)
        if idle := {"max_steps", "fork_from"} & given.keys():
            names = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(idle))
            raise ValueError(f"{names} changes no plan, which is of all --epochs: leave it out")
        fields = {name: value for name, value in given.items() if name in FIELDS}
        wanted = with_values(recipe_config(recipe), fields)
        if config is not None and options.step_seconds is None:
            _check_computes_so(wanted, config)
        config = wanted
    if config is None:
        raise ValueError("what is to be planned is missing: give a RECIPE, or --from-run RUN")
    samples, shard_bytes = options.samples, None
    if (Path(config.data.shards) / MANIFEST_NAME).is_file():
        manifest = read_manifest(Path(config.data.shards))
        split = manifest.split("train")
        samples, shard_bytes = samples or split.num_samples, sum(split.shard_bytes)
        classes = classes or manifest.num_classes
    return planned(config, _constants(options, config, costs, samples, classes, shard_bytes))


def _constants(
    options: Options,
    config: Config,
    measured: RunCosts,
    samples: int | None,
    classes: int | None,
    shard_bytes: int | None,
) -> Constants:
    run, missing = measured.run, list[str]()
    is_other = run is not None and options.ranks not in (None, run.world_size)
    if run is not None and is_other and options.step_seconds is None:
        raise ValueError(
            f"--ranks is {options.ranks}, and the run has measured a step on {run.world_size}: "
            f"give --step-seconds of a step on {options.ranks}"
        )

    def need(option: str, *values: float | None) -> float:
        """The first that is known."""
        missing.extend([] if any(value is not None for value in values) else [option])
        return next((value for value in values if value is not None), math.nan)

    ranks = need("--ranks", options.ranks, None if run is None else run.world_size)
    num_samples = need("--samples", samples, None if run is None else run.num_train_samples)
    num_classes = need("--classes", classes)
    step = need("--step-seconds", options.step_seconds, measured.step)
    evaluation = need("--evaluation-seconds", options.evaluation_seconds, measured.evaluation)
    counts = need("--save-seconds", options.save_seconds, measured.save)
    own = measured.save_wait if options.save_seconds is None else None
    wait = need("--save-wait-seconds", options.save_wait_seconds, own, counts)
    start = need("--start-seconds", options.start_seconds, measured.start)
    restart = need("--restart-seconds", options.restart_seconds, measured.restart, start)
    kept = _kept_share(options, config, measured)
    warm = need("--warm-seconds", options.warm_seconds, measured.warm, None if kept else 0.0)
    if missing:
        raise ValueError(
            f"a plan lacks constants: give {', '.join(missing)}, or --from-run RUN of a run of "
            "this recipe on these ranks that has trained some log intervals, evaluated and saved "
            "('python -m launch local RECIPE …' makes one)"
        )
    if wait > counts:
        raise wrong("--save-wait-seconds", f"{wait:g}", f"at most --save-seconds, {counts:g}")
    failing = options.mtbf_hours
    rate = 0.0 if failing is None else options.nodes / (3600 * failing)
    return Constants(
        ranks=int(ranks),
        samples=int(num_samples),
        classes=int(num_classes),
        step=step,
        phases=measured.phases if options.step_seconds is None else {},
        evaluation=evaluation,
        best=(measured.best or 0.0) if options.best_ratio is None else options.best_ratio,
        shard_bytes=shard_bytes,
        is_on_gpus=(config.distributed.device if run is None else run.device) != "cpu",
        costs=Costs(
            rate=rate, wait=wait, counts=counts, start=start, restart=restart, kept=kept, warm=warm
        ),
    )


def _kept_share(options: Options, config: Config, measured: RunCosts) -> float:
    """Of failures that ranks survive in memory."""
    if config.distributed.warm_restarts:
        return (measured.kept or 0.0) if options.kept_ratio is None else options.kept_ratio
    if options.kept_ratio:
        expected = "0, or a plan with --distributed.warm_restarts"
        raise wrong("--kept-ratio", f"{options.kept_ratio:g}", expected)
    return 0.0


def _check_computes_so(planned: Config, measured: Config) -> None:
    """Raise `ValueError` if a step of the run says nothing of the plan's."""
    for name in ("model.name", "model.columns", "global_batch_size", "precision"):
        ours, theirs = (operator.attrgetter(name)(config) for config in (planned, measured))
        if ours != theirs and (name != "precision" or ours != "auto"):
            raise ValueError(
                f"{name} of the plan is {ours}, and of the run {theirs}: give --step-seconds, or a "
                "run that computes the same"
            )
