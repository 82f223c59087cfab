"""Which GPU a rank computes on, by the name that driver and DCGM have for it, and its energy."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import prometheus_client
from prometheus_client.registry import Collector

from data_prep.shard_set.families import collected
from pipeline.metrics.declared import GPU_ENERGY, GPU_INFO

_NVML = "libnvidia-ml.so.1"
"""The management library of NVIDIA's driver, which brings it: nothing needs to be installed."""


class GpuCollector(Collector):
    """Asks NVML whenever the rank publishes, in the publisher's thread: never in a step.

    It raises nothing. Without NVML the number is unknown and the energy absent, as it is on a GPU
    without that counter (older than Volta).
    """

    def __init__(self, uuid: str, *, rank: int, local_rank: int, library: str = _NVML) -> None:
        """`uuid` is that of the GPU, as `nvidia-smi -L` shows it: GPU- and 32 digits in groups."""
        self._uuid = uuid
        self._library = library
        self._labels = {"rank": str(rank), "local_rank": str(local_rank)}
        self._device: _Device | None = None
        self._index = ""
        self._first: float | None = None
        self._last = 0.0
        self._is_open = False

    def collect(self) -> Iterator[prometheus_client.Metric]:
        if not self._is_open:
            self._is_open = True
            self._open()
        info = collected(GPU_INFO)
        identity = {"gpu_uuid": self._uuid, "gpu_index": self._index}
        info.add_sample(GPU_INFO.name, self._labels | identity, 1)
        yield info
        if self._device is not None and self._first is not None:
            # A reading that fails now leaves the last one.
            self._last = max(self._last, (self._device.joules() or 0) - self._first)
            energy = collected(GPU_ENERGY)
            energy.add_sample(GPU_ENERGY.name, self._labels, self._last)
            yield energy

    def _open(self) -> None:
        try:
            self._device = _Device(self._uuid, self._library)
        except OSError:
            return
        index = self._device.index()
        self._index = "" if index is None else str(index)
        self._first = self._device.joules()


class _Device:
    """A GPU in NVML. Raises `OSError` if there is no library, or no such GPU in it."""

    def __init__(self, uuid: str, library: str) -> None:
        self._nvml = ctypes.CDLL(library)
        self._handle = ctypes.c_void_p()
        found = ctypes.byref(self._handle)
        if not (
            self._succeeds("nvmlInit_v2")
            and self._succeeds("nvmlDeviceGetHandleByUUID", uuid.encode(), found)
        ):
            raise OSError(f"NVML knows no GPU {uuid}")

    def index(self) -> int | None:
        """Its number on this host, which `CUDA_VISIBLE_DEVICES` does not change."""
        number = ctypes.c_uint()
        is_known = self._succeeds("nvmlDeviceGetIndex", self._handle, ctypes.byref(number))
        return number.value if is_known else None

    def joules(self) -> float | None:
        """Energy since the driver was loaded."""
        millijoules = ctypes.c_ulonglong()
        name, where = "nvmlDeviceGetTotalEnergyConsumption", ctypes.byref(millijoules)
        return millijoules.value / 1000 if self._succeeds(name, self._handle, where) else None

    def _succeeds(self, name: str, *arguments: object) -> bool:
        function = getattr(self._nvml, name, None)  # older drivers lack some
        return function is not None and function(*arguments) == 0
