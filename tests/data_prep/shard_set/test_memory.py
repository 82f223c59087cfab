"""What memory is left, by the host and by the control group."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.shard_set.memory import host_free_bytes


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [(None, None, 4000 << 10), ("max", "5", 4000 << 10), ("3000000", "1000000", 2_000_700)],
)
def test_the_control_group_s_limit_counts(
    tmp_path: Path, limit: str | None, used: str | None, expected: int
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    if limit is not None and used is not None:
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text("anon 9\nfile 900\ninactive_file 600\nactive_file 100\n")
    assert host_free_bytes(tmp_path) == expected


def test_this_host_has_memory() -> None:
    assert host_free_bytes() > 1 << 20
