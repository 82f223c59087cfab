"""What a rank leaves of groups that broke."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]  # not exported

from pipeline.ranks.connect import _break_off
from tests.pipeline.worlds import SINGLE


def test_a_group_that_could_not_begin_does_not_count() -> None:
    """Its name is a number, and the ranks that meet next must have the same one."""
    with pytest.raises(RuntimeError):
        dist.init_process_group(
            "gloo", store=HashStore(), rank=0, world_size=2, timeout=timedelta(seconds=0.2)
        )
    _break_off(SINGLE)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        assert dist.distributed_c10d._get_default_group().group_name == "0"
    finally:
        dist.destroy_process_group()
