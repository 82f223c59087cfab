"""`python -m launch explain RUN`: what happened, in one sentence and some lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.options import Named
from data_prep.shard_set.streams import say
from launch.runs import existing
from pipeline.explain.explain import explain


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Say what happened to a run, why, what was lost and what to do."""

    run_dir: Annotated[Path, Named("RUN")]
    """The run's directory."""
    json: bool = False
    """Print it as JSON, for programs."""


def run(options: Options) -> None:
    """Raises `ValueError` if there is no run."""
    found = explain(existing(options.run_dir))
    say(*([json.dumps(found.to_json())] if options.json else found.lines()))
