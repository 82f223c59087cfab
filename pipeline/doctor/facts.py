"""What a rank finds out about its host, its shard set and its run directory."""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import shutil
import socket
import struct
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from data_prep.shard_set.compiled import is_compiled
from data_prep.shard_set.manifest import ShardSetError, manifest_sha256, read_manifest
from pipeline.config.data import is_url
from pipeline.config.kernel_compiler import compiler_fault
from pipeline.doctor.deadlines import Answers
from pipeline.doctor.options import DoctorOptions
from pipeline.metrics.addresses import address_towards
from pipeline.optim.precision import Arithmetic, arithmetic_of
from pipeline.ranks.failure import sentence_of
from pipeline.ranks.launcher import LaunchEnvironment

_PACKAGES = ("torch", "numpy", "webdataset", "pillow", "simplejpeg", "ffcv")
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What one rank finds."""

    rank: int
    host: str
    local_world_size: int
    rendezvous: str
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
    kernel_fault: str = ""
    """Why no kernel can be compiled for its GPU."""
    stuck: tuple[str, ...] = ()
    """Checks without an answer."""


def collect(environment: LaunchEnvironment, device: torch.device, options: DoctorOptions) -> Facts:
    """The facts of this rank."""
    answers = Answers()
    manifest, num_shards = answers.to(
        "the shard set", lambda: _find_shards(options.shards), ("it does not answer", 0)
    )
    return Facts(
        rank=environment.rank,
        host=socket.gethostname(),
        local_world_size=environment.local_world_size,
        rendezvous=environment.rendezvous,
        interface=answers.to("the interface", lambda: _interface_to(environment.rendezvous), ""),
        device=str(device),
        arithmetic=arithmetic_of(device),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        num_cores=os.cpu_count() or 1,
        shm_bytes=shutil.disk_usage("/dev/shm").free,  # noqa: S108 - the mount itself
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],  # what readers raise theirs to
        disk_bytes=answers.to(
            "the run directory", lambda: _find_room(options.run_dir), "it does not answer"
        ),
        manifest=manifest,
        num_shards=num_shards,
        versions=answers.to("the versions", _versions, dict[str, str]()),
        name_fault=answers.to("the host name", _name_fault, ""),
        kernel_fault=(compiler_fault() or "") if device.type == "cuda" else "",
        stuck=tuple(answers.missing),
    )


def _name_fault() -> str:
    """Why other hosts, and plain torchrun on this one, cannot find this host by its name."""
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
        splits = read_manifest(Path(shards)).splits.values()
        files = [path for split in splits for path in split.shard_paths(Path(shards))]
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            return f"{missing} is missing", 0
        return manifest_sha256(Path(shards)), len(files)
    except (ShardSetError, OSError) as error:
        return sentence_of(error), 0


def _find_room(run_dir: Path) -> int | str:
    """Free bytes where the run directory is or would be."""
    try:
        folder = run_dir.resolve()
        while not folder.exists():
            folder = folder.parent
        if folder.is_dir() and os.access(folder, os.W_OK):
            return shutil.disk_usage(folder).free
    except OSError as error:
        return f"{run_dir} cannot be looked at ({error.strerror}): give another --run-dir"
    return f"{folder} cannot be written to: give another --run-dir"


def _interface_to(rendezvous: str) -> str:
    """The network interface that leads there; empty if it is not known."""
    address = address_towards(rendezvous)
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
    found["compiled module"] = "built" if is_compiled() else "not built, or of another version"
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
    """The version of the kernel's module."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return words[words.index("Module") + 1]
    except (OSError, ValueError, IndexError):
        return "unknown"
