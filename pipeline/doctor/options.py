"""The options of `pipeline.doctor`, for those too that start it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.fields import Reads, at_least
from pipeline.config.data import location_option
from pipeline.config.schema import DeviceName


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorOptions:
    """Check a machine, or several, for training."""

    shards: Annotated[str | None, Reads(location_option)] = None
    """The shard set that all ranks must find."""
    run_dir: Path = Path()
    """Where the run is to go."""
    decode_threads: Annotated[int, at_least(1)] = 1
    """data.decode_threads of the run."""
    device: DeviceName = "auto"
    """distributed.device of the run."""
