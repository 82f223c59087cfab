"""Which process of the job this one is.

Only this module reads the launcher's environment variables. Without a launcher the job is one
process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pipeline.config.timeouts import SHUTDOWN_VARIABLE, TORCHRUN_SHUTDOWN_SECONDS
from pipeline.run.ending import AGENT_VARIABLE
from pipeline.run.lock import LOG_VARIABLE, JobStart


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchEnvironment:
    """What the launcher says about this process: its ranks, attempt and rendezvous."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    attempt: int = 0
    """How often torchrun has restarted all ranks because one of this host had failed."""
    is_store_kept: bool = False
    """Whether the store where the ranks meet is torchrun's own, the same for all attempts."""
    max_attempts: int = 0
    """How often it may do so (--max-restarts)."""
    rendezvous: str = ""
    """Address and port where the ranks meet."""
    start: JobStart | None = None
    """Which start of a SLURM job this is, if it belongs to one."""
    log: str = ""
    """The file of the job's output, if its launcher names one."""
    is_launched: bool = False
    """Whether a launcher such as torchrun started this process."""
    shutdown_seconds: float | None = None
    """What torchrun gives its ranks to leave after a signal; None without torchrun."""
    agent: int | None = None
    """The process of torchrun, if that is the launcher: it looks after this one as its parent."""
    supervisor: int | None = None
    """The process between the two, if there is one: see `pipeline.ranks.supervisor`."""
    began: float | None = None
    """When this rank began, or began anew, in place of a lost one or to meet it; in Unix seconds.

    None: with the attempt.
    """

    @property
    def hosts_store(self) -> bool:
        """Whether the store where the ranks meet is on this rank's side."""
        return self.rank == 0 and not self.is_store_kept

    @property
    def parent(self) -> int | None:
        """The process that looks after this one, if any does."""
        return self.supervisor or self.agent

    @property
    def is_restart(self) -> bool:
        """Whether nobody may be there: the job is started again, or this rank in it."""
        is_requeued = self.start is not None and self.start.number > 0
        return self.attempt > 0 or is_requeued or self.began is not None

    @classmethod
    def read(cls) -> LaunchEnvironment:
        """Read torchrun's variables; raises `ValueError` if only some of them are set."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        values = {name: os.environ.get(name) for name in names}
        if values["RANK"] is None and values["WORLD_SIZE"] is None:
            return cls()
        for name, value in values.items():
            if value is None or not value.isdecimal():
                raise ValueError(
                    f"the environment variable {name} is {value}; expected a number beside the "
                    f"others of {', '.join(names)}: start with torchrun, or unset them all"
                )
        rank, local_rank, world_size, local_world_size = (int(v or 0) for v in values.values())
        start = None
        if "SLURM_JOB_ID" in os.environ:
            number = int(os.environ.get("SLURM_RESTART_COUNT", 0))
            start = JobStart(job=os.environ["SLURM_JOB_ID"], number=number)
        agent, shutdown = None, None
        if "TORCHELASTIC_RUN_ID" in os.environ:
            # Our launchers name the agent: it may have been killed while this process started.
            agent = int(os.environ.get(AGENT_VARIABLE) or os.getppid())
            shutdown = float(os.environ.get(SHUTDOWN_VARIABLE, TORCHRUN_SHUTDOWN_SECONDS))
        return cls(
            rank=rank,
            local_rank=local_rank,
            world_size=world_size,
            local_world_size=local_world_size,
            attempt=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
            is_store_kept=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            max_attempts=int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)),
            rendezvous=":".join(
                os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ
            ),
            start=start,
            log=os.environ.get(LOG_VARIABLE, ""),
            is_launched=True,
            agent=agent,
            shutdown_seconds=shutdown,
        )
