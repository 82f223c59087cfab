"""`torchrun … -m pipeline.doctor`: checks, on every rank, what ruins runs.

Every rank collects facts of its host, all meet, and rank 0 judges: one line a check. It exits with
1 if one fails. `python -m launch doctor` starts it here, `launch slurm train --doctor` on the nodes
of a job.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import resource
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from data_prep.files import path_option
from data_prep.manifest import ShardSetError, manifest_sha256, read_manifest
from data_prep.pixels import is_compiled
from data_prep.streams import exit_code_when_told, open_streams
from pipeline.config import DistributedConfig, is_url, location_option
from pipeline.console import Console
from pipeline.distributed import Place, World, connect
from pipeline.exit_codes import FAILED
from pipeline.failure import exit_code_of, leave, sentence_of
from pipeline.metrics.addresses import address_towards
from pipeline.patience import ANSWER_SECONDS, Answers, deadline
from pipeline.precision import Arithmetic, arithmetic_of, meaning

_DEADLINE_SECONDS = 120.0  # a first import of torch over a network takes some hosts a minute
_MAX_SKEW_SECONDS = 1.0
_MIN_OPEN_FILES = 4096
_MIN_SHM_BYTES = 512 << 20
_MIN_DISK_BYTES = 4 << 30  # some checkpoints of the 2012 network, 0.5 GB each
_PROBE_VALUES = 4 << 20
_PACKAGES = ("torch", "numpy", "webdataset", "pillow", "simplejpeg", "ffcv")
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What one rank finds."""

    rank: int
    host: str
    local_world_size: int
    meeting: str
    """Address and port where the ranks meet."""
    interface: str
    device: str
    arithmetic: Arithmetic
    cores: tuple[int, ...]
    """Those that this process may use."""
    num_cores: int
    """Of the host."""
    shm_bytes: int
    """Free in /dev/shm."""
    open_files: int
    """That this process may have at most."""
    disk_bytes: int | str
    """Free where the run goes, or what is wrong with it."""
    manifest: str | None
    """Hash of the shard set's manifest, or what is wrong with it; None: not asked for."""
    num_shards: int
    versions: dict[str, str]
    name_fault: str = ""
    """What is wrong with the host's name."""
    stuck: tuple[str, ...] = ()
    """Checks without an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the answer."""

    title: str
    text: str
    is_right: bool = True


def judge(facts: Sequence[Facts], num_threads: int) -> list[Check]:
    """What the facts of all ranks, in rank order, say; `num_threads` read for each rank."""
    return [
        _check_ranks(facts),
        _check_names(facts),
        Check(title="precision", text=meaning([one.arithmetic for one in facts])),
        _check_cores(facts, num_threads),
        _check_shared_memory(facts),
        _check_open_files(facts),
        _check_disk(facts),
        *_check_shards(facts),
        *_check_versions(facts),
        _check_answers(facts),
    ]


def _check_answers(facts: Sequence[Facts]) -> Check:
    wrong = [
        f"{title} is stuck on {one.host}: no answer within {ANSWER_SECONDS:g} s"
        for one in facts
        for title in one.stuck
    ]
    return _check("answers", "all in time", wrong)


def _hosts(facts: Iterable[Facts]) -> dict[str, Facts]:
    """The first rank of each host."""
    found: dict[str, Facts] = {}
    for one in facts:
        found.setdefault(one.host, one)
    return found


def _check(title: str, text: str, wrong: Iterable[str]) -> Check:
    """A check that is right if nothing is `wrong`."""
    faults = list(dict.fromkeys(wrong))
    return Check(title=title, text="; ".join(faults) or text, is_right=not faults)


def _check_names(facts: Sequence[Facts]) -> Check:
    faults = [one.name_fault for one in facts if one.name_fault]
    return _check("host names", "all resolve", faults)


def _check_ranks(facts: Sequence[Facts]) -> Check:
    hosts = ", ".join(
        f"{host} ({one.local_world_size}, {one.device}, {one.interface})"
        for host, one in _hosts(facts).items()
    )
    return Check(title="ranks", text=f"{len(facts)}, met at {facts[0].meeting}: {hosts}")


def _check_cores(facts: Sequence[Facts], num_threads: int) -> Check:
    """SLURM's default is one core a task, and affinity is inherited: all ranks would share it."""
    cores_of = {
        host: sorted({core for one in facts if one.host == host for core in one.cores})
        for host in _hosts(facts)
    }
    wrong = []
    for host, one in _hosts(facts).items():
        needed, cores = one.local_world_size * (1 + num_threads), len(cores_of[host])
        if cores < min(needed, one.num_cores):
            wrong.append(
                f"{host} lets its {one.local_world_size} ranks use {cores} of {one.num_cores} "
                f"cores, and each has {num_threads} threads that read besides its own: ask for "
                "more (--cpus-per-task)"
            )
    cores_text = ", ".join(f"{len(cores)} on {host}" for host, cores in cores_of.items())
    return _check("CPU cores", cores_text, wrong)


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
    return _check("/dev/shm", f"{_size(least)} free at least", wrong)


def _check_open_files(facts: Sequence[Facts]) -> Check:
    """The reader of tars keeps all its shards open."""
    needed = max(_MIN_OPEN_FILES, 2 * max(one.num_shards for one in facts))
    wrong = [
        f"{one.host} allows {one.open_files:,}, {needed:,} are needed: raise 'ulimit -Hn'"
        for one in facts
        if one.open_files < needed
    ]
    return _check("open files", f"{min(one.open_files for one in facts):,} at least", wrong)


def _check_disk(facts: Sequence[Facts]) -> Check:
    wrong = []
    for one in facts:
        if isinstance(one.disk_bytes, str):
            wrong.append(f"{one.host}: {one.disk_bytes}")
        elif one.disk_bytes < _MIN_DISK_BYTES:
            wrong.append(
                f"{one.host} has {_size(one.disk_bytes)} free, {_size(_MIN_DISK_BYTES)} are needed"
            )
    sizes = [one.disk_bytes for one in facts if isinstance(one.disk_bytes, int)]
    return _check("run directory", f"{_size(min(sizes, default=0))} free", wrong)


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
    return [_check("shard set", f"manifest {first[:8]}…, {facts[0].num_shards} shards", wrong)]


def _check_versions(facts: Sequence[Facts]) -> list[Check]:
    first = facts[0]
    wrong = []
    for one in facts:
        for name in {**first.versions, **one.versions}:  # a host without CUDA has fewer
            found, expected = (each.versions.get(name, "unknown") for each in (one, first))
            if found != expected:
                wrong.append(f"{name} is {found} on {one.host} and {expected} on {first.host}")
    text = ", ".join(f"{name} {value}" for name, value in first.versions.items())
    return [_check("versions", text, wrong)]


def _size(num_bytes: int) -> str:
    gib = num_bytes / (1 << 30)
    return f"{gib:.1f} GiB" if gib >= 1 else f"{1024 * gib:.0f} MiB"


def collect(place: Place, device: torch.device, options: argparse.Namespace) -> Facts:
    """The facts of this rank."""
    answers = Answers()
    manifest, num_shards = answers.to(
        "the shard set", lambda: _find_shards(options.shards), ("it does not answer", 0)
    )
    return Facts(
        rank=place.rank,
        host=socket.gethostname(),
        local_world_size=place.local_world_size,
        meeting=place.meeting,
        interface=answers.to("the interface", lambda: _interface_to(place.meeting), ""),
        device=str(device),
        arithmetic=arithmetic_of(device),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        num_cores=os.cpu_count() or 1,
        shm_bytes=_free_bytes(Path("/dev/shm")),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],  # what readers raise theirs to
        disk_bytes=answers.to(
            "the run directory", lambda: _find_room(options.run_dir), "it does not answer"
        ),
        manifest=manifest,
        num_shards=num_shards,
        versions=answers.to("the versions", _versions, dict[str, str]()),
        name_fault=answers.to("the host name", _name_fault, ""),
        stuck=tuple(answers.missing),
    )


def _name_fault() -> str:
    """What keeps other hosts, and plain torchrun on this one, from finding it by its name."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        return f"{name} does not resolve ({error.strerror}): add it to /etc/hosts or the DNS"
    return ""


def _find_shards(shards: str | None) -> tuple[str | None, int]:
    """Hash of the manifest, or what is wrong with it, and the number of shards."""
    if shards is None or is_url(shards):
        return None, 0
    try:
        manifest = read_manifest(Path(shards))
        for split in manifest.splits.values():
            for name in split.filenames:
                if not (Path(shards) / name).is_file():
                    return f"{Path(shards) / name} is missing", 0
        num_shards = sum(len(split.filenames) for split in manifest.splits.values())
        return manifest_sha256(Path(shards)), num_shards
    except (ShardSetError, OSError) as error:
        return sentence_of(error), 0


def _find_room(run_dir: Path) -> int | str:
    """Free bytes where the run directory is or would be."""
    try:
        folder = run_dir.resolve()
        while not folder.exists():
            folder = folder.parent
        if folder.is_dir() and os.access(folder, os.W_OK):
            return _free_bytes(folder)
    except OSError as error:
        return f"{run_dir} cannot be looked at ({error.strerror}): give another --run-dir"
    return f"{folder} cannot be written to: give another --run-dir"


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _interface_to(meeting: str) -> str:
    """The network interface that leads there; empty if that cannot be told."""
    address = address_towards(meeting)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if address and _address_of(probe, name) == address:
                return name
    return ""


def _address_of(probe: socket.socket, interface: str) -> str:
    request = struct.pack("256s", interface[:15].encode())
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
    except OSError:  # it has none
        return ""
    return socket.inet_ntoa(answer[20:24])


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    found |= {name: _version_of(name) for name in _PACKAGES}
    found["compiled module"] = "built" if is_compiled() else "not built"
    if torch.cuda.is_available():
        found["CUDA"] = str(torch.version.cuda)
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["driver"] = _driver_version()
        found["GPU"] = torch.cuda.get_device_name()
    return found


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _driver_version() -> str:
    """Of the kernel's module, which says it in a file."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return words[words.index("Module") + 1]
    except (OSError, ValueError, IndexError):
        return "unknown"


def measure_meeting(world: World) -> Check:
    """One reduction of ones over all ranks, and how long it takes."""
    values = torch.ones(_PROBE_VALUES, device=world.device)
    world.sum(values)
    begin = time.perf_counter()
    world.sum(values)
    total = float(values[0])
    seconds = time.perf_counter() - begin
    expected = float(world.size**2)
    return _check(
        "all-reduce",
        f"{values.nbytes / 1e6:.0f} MB over {world.size} ranks in {1e3 * seconds:.0f} ms",
        [] if total == expected else [f"it gives {total:g} instead of {expected:g}"],
    )


def measure_clocks(world: World, now: Callable[[], float] = time.time) -> Check:
    """How far the hosts' clocks are apart: of some tries the one that waited least."""
    skews = []
    for _ in range(5):
        world.gather(None)
        times = world.gather(now())
        skews.append(max(times) - min(times))
    skew = min(skews)
    wrong = [] if skew <= _MAX_SKEW_SECONDS else [f"{skew:.1f} s apart: set them by NTP"]
    return _check("clocks", f"at most {1e3 * skew:.0f} ms apart", wrong)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.doctor", description="Check a machine, or several, for training."
    )
    parser.add_argument(
        "--shards", type=location_option, help="the shard set that all ranks must find"
    )
    parser.add_argument(
        "--run-dir", type=path_option, default=Path(), help="where the run is to go"
    )
    parser.add_argument(
        "--decode-threads", type=int, default=1, help="data.decode_threads (%(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def examine(options: argparse.Namespace) -> int:
    """Collect, meet and judge; returns the exit code. Raises `RankFailure` if ranks do not meet."""
    place = Place.from_environment()
    config = DistributedConfig(
        device=options.device,
        timeout_seconds=_DEADLINE_SECONDS,
        save_timeout_seconds=_DEADLINE_SECONDS,
    )
    with connect(place, config) as world:
        with deadline("the gathering of the answers"):
            with world.together():
                own = collect(place, world.device, options)
            facts = world.gather(own)
        checks = judge(facts, options.decode_threads)
        with deadline("all-reduce"):
            checks.insert(1, measure_meeting(world))
        with deadline("clocks"):
            checks.insert(2, measure_clocks(world))
    num_wrong = sum(not check.is_right for check in checks)
    if place.rank == 0:
        console = Console(sys.stdout)
        for check in checks:
            console.line(f"{'ok  ' if check.is_right else 'FAIL'}  {check.title}: {check.text}")
        if num_wrong:
            sys.stderr.write(f"error: {num_wrong} of {len(checks)} checks failed\n")
    return FAILED if num_wrong else 0


if __name__ == "__main__":
    open_streams()
    leave(exit_code_when_told(exit_code_of(lambda: examine(_parser().parse_args()))))
