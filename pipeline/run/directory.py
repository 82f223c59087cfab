"""The run directory: where everything of one run lies, and what keeps two runs apart.

RUN/
  config.json           the resolved config, versions, git revision, manifest hash
  events.jsonl          see `pipeline.run.events` and `pipeline.run.event_log`
  checkpoints/step-…    see `pipeline.run.checkpoint`
  predictions/val.npz   the latest evaluation, sample by sample: see `pipeline.evaluate`
  metrics/rank-*.prom   see `pipeline.metrics`
  report.html           see `pipeline.report`
  logs/*.log            what jobs started by `launch` wrote, one file each
  hangs/rank-*.txt      the stacks of a job that hung: see `pipeline.ranks.watchdog`
  STOP                  make this file to stop the run soon; it is then removed
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The names of everything in the run directory at `path`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def hangs(self) -> Path:
        return self.path / "hangs"

    @property
    def targets(self) -> Path:
        """Prometheus `file_sd` targets of all runs beside this one."""
        return self.path.resolve().parent / "prometheus-targets"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def stop_request(self) -> Path:
        return self.path / "STOP"

    def predictions(self, split: str) -> Path:
        return self.path / "predictions" / f"{split}.npz"

    @contextlib.contextmanager
    def being_made(self) -> Iterator[None]:
        """Let the block make what a job needs here; what prevents it is a `ValueError`.

        So is a folder that holds other things, and has never been a run's: it is left as it is.
        """
        own = {self.config, self.events, self.checkpoints, self.predictions("").parent}
        own |= {self.metrics, self.logs, self.hangs, self.report, self.stop_request}
        try:
            if self.path.exists() and not self.events.exists():
                others = {path for path in self.path.iterdir() if path.name[0] != "."} - own
                if others and not any(self.checkpoints.glob("step-*")):
                    raise ValueError(
                        f"--run-dir {self.path} is no run directory, and holds "
                        f"{min(others).name}: give a new or empty directory"
                    )
            yield
        except (FileExistsError, NotADirectoryError):
            raise ValueError(
                f"--run-dir {self.path} cannot be made: a file of that name is in the way; "
                "give another directory"
            ) from None
        except OSError as error:
            raise ValueError(
                f"--run-dir {self.path} cannot be written to: {error.strerror}; "
                "give another directory"
            ) from None
