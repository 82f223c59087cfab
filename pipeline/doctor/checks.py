"""What the facts of all ranks must be for a run to go well: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.config.timeouts import ANSWER_SECONDS
from pipeline.doctor.facts import Facts
from pipeline.optim.precision import meaning, mixture

_MIN_OPEN_FILES = 4096
_MIN_SHM_BYTES = 512 << 20
_MIN_DISK_BYTES = 4 << 30  # some checkpoints of the 2012 network, 0.5 GB each


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the answer."""

    title: str
    text: str
    is_right: bool = True


def judge(facts: Sequence[Facts], num_threads: int) -> list[Check]:
    """What the facts of all ranks, in rank order, say; `num_threads` read for each rank."""
    hosts = ", ".join(
        f"{host} ({one.local_world_size}, {one.device}, {one.interface})"
        for host, one in _hosts(facts).items()
    )
    devices = [one.arithmetic for one in facts]
    no_answer = (
        f"{title} is stuck on {one.host}: no answer within {ANSWER_SECONDS:g} s"
        for one in facts
        for title in one.stuck
    )
    return [
        Check(title="ranks", text=f"{len(facts)}, met at {facts[0].rendezvous}: {hosts}"),
        checked("host names", "all resolve", (one.name_fault for one in facts)),
        checked("precision", meaning(devices), [mixture(devices) or ""]),
        *_check_kernels(facts),
        _check_cores(facts, num_threads),
        _check_shared_memory(facts),
        _check_open_files(facts),
        _check_disk(facts),
        *_check_shards(facts),
        _check_versions(facts),
        checked("answers", "all in time", no_answer),
    ]


def _hosts(facts: Sequence[Facts]) -> dict[str, Facts]:
    """The first rank of each host."""
    found: dict[str, Facts] = {}
    for one in facts:
        found.setdefault(one.host, one)
    return found


def checked(title: str, text: str, faults: Iterable[str]) -> Check:
    """A check that is right if there are no `faults`, apart from empty ones."""
    wrong = list(dict.fromkeys(filter(None, faults)))
    return Check(title=title, text="; ".join(wrong) or text, is_right=not wrong)


def _check_kernels(facts: Sequence[Facts]) -> list[Check]:
    """Without them training works, but takes longer."""
    on_gpus = [one for one in facts if one.arithmetic.is_gpu]
    wrong = (f"{one.host}: {one.kernel_fault}" for one in on_gpus if one.kernel_fault)
    return [checked("kernels", "Triton can compile them", wrong)] if on_gpus else []


def _check_cores(facts: Sequence[Facts], num_threads: int) -> Check:
    """SLURM's default is one core a task, and affinity is inherited: all ranks would share it."""
    wrong, found = [], []
    for host, one in _hosts(facts).items():
        cores = len({core for other in facts if other.host == host for core in other.cores})
        found.append(f"{cores} on {host}")
        if cores < min(one.local_world_size * (1 + num_threads), one.num_cores):
            wrong.append(
                f"{host} lets its {one.local_world_size} ranks use {cores} of {one.num_cores} "
                f"cores, and each has {num_threads} threads that read besides its own: ask for "
                "more (--cpus-per-task)"
            )
    return checked("CPU cores", ", ".join(found), wrong)


def _check_shared_memory(facts: Sequence[Facts]) -> Check:
    """NCCL talks through it where GPUs of a host have no faster way; nothing else here needs it."""
    wrong = [
        f"{host} has {_size(one.shm_bytes)} free, {_size(_MIN_SHM_BYTES)} are needed: "
        "give a container --shm-size"
        for host, one in _hosts(facts).items()
        if one.device.startswith("cuda") and one.local_world_size > 1
        if one.shm_bytes < _MIN_SHM_BYTES
    ]
    least = min(one.shm_bytes for one in facts)
    name = "/dev/shm"  # noqa: S108 - the mount itself
    return checked(name, f"{_size(least)} free at least", wrong)


def _check_open_files(facts: Sequence[Facts]) -> Check:
    """The reader of tars keeps all its shards open."""
    needed = max(_MIN_OPEN_FILES, 2 * max(one.num_shards for one in facts))
    wrong = [
        f"{one.host} allows {one.open_files:,}, {needed:,} are needed: raise 'ulimit -Hn'"
        for one in facts
        if one.open_files < needed
    ]
    return checked("open files", f"{min(one.open_files for one in facts):,} at least", wrong)


def _check_disk(facts: Sequence[Facts]) -> Check:
    wrong, sizes = [], []
    for one in facts:
        if isinstance(one.disk_bytes, str):
            wrong.append(f"{one.host}: {one.disk_bytes}")
            continue
        sizes.append(one.disk_bytes)
        if one.disk_bytes < _MIN_DISK_BYTES:
            size, needed = _size(one.disk_bytes), _size(_MIN_DISK_BYTES)
            wrong.append(f"{one.host} has {size} free, {needed} are needed")
    return checked("run directory", f"{_size(min(sizes, default=0))} free", wrong)


def _check_shards(facts: Sequence[Facts]) -> list[Check]:
    if facts[0].manifest is None:
        return []
    first = facts[0].manifest
    is_hash = all(letter in "0123456789abcdef" for letter in first)
    wrong = [] if is_hash else [f"rank 0 on {facts[0].host}: {first}"]
    wrong += [
        f"rank {one.rank} on {one.host} finds {one.manifest}, and rank 0 {first}"
        for one in facts
        if one.manifest != first
    ]
    return [checked("shard set", f"manifest {first[:8]}…, {facts[0].num_shards} shards", wrong)]


def _check_versions(facts: Sequence[Facts]) -> Check:
    first = facts[0]
    wrong = []
    for one in facts:
        for name in {**first.versions, **one.versions}:  # a host without CUDA has fewer
            found, expected = (each.versions.get(name, "unknown") for each in (one, first))
            if found != expected:
                wrong.append(f"{name} is {found} on {one.host} and {expected} on {first.host}")
    text = ", ".join(f"{name} {value}" for name, value in first.versions.items())
    return checked("versions", text, wrong)


def _size(num_bytes: int) -> str:
    gib = num_bytes / (1 << 30)
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.0f} MiB"
