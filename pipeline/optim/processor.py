"""The processor of this host: its name, and the instruction sets that torch computes with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
"""What Linux calls instructions that multiply bf16: the first two of x86, the others of Arm."""

_ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""oneDNN, which computes torch's convolutions on CPUs, heeds the first of these that is set."""

_ONEDNN_WITHOUT_BF16 = ("AVX512_CORE", "AVX512_CORE_VNNI")
"""Limits under which it takes bf16 and computes in fp32; below them it takes none."""

_LIMITS = (
    *("ATEN_CPU_CAPABILITY", *_ONEDNN_LIMITS),
    *("MKL_ENABLE_INSTRUCTIONS", "NUMBA_CPU_NAME"),
)
"""Variables that hold a library to fewer instructions than the processor has."""


def processor_name() -> str:
    """As its maker calls it."""
    return _cpuinfo("model name") or platform.machine()


def instruction_sets() -> str:
    """Those that are used here, and what limits them if anything does: such as 'avx512, bf16'."""
    level = torch.backends.cpu.get_cpu_capability().lower()
    names = [f"{platform.machine()} baseline" if level == "default" else level]
    if has_bf16():
        names.append("bf16")
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    return ", ".join(names) + (f" (limited by {', '.join(limits)})" if limits else "")


def has_bf16() -> bool:
    """Whether products of bf16 have instructions of their own here (AVX512_BF16, AMX, Arm's).

    What is asked for is what is used: oneDNN may be held to less than the processor has.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # true of any AVX-512
        return False
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()  # of x86, of Arm
    limit = next((os.environ[name] for name in _ONEDNN_LIMITS if name in os.environ), "")
    return not _BF16_FLAGS.isdisjoint(flags) and limit.upper() not in _ONEDNN_WITHOUT_BF16


def _cpuinfo(name: str) -> str | None:
    """What Linux says of the first core under `name`; None: nothing."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
