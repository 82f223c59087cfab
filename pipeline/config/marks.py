"""Marks of a config's fields beside their limits, and the check of a group of fields."""

from __future__ import annotations

from data_prep.shard_set.fields import check_fields

OR_NONE = ", or none"
"""What the command line takes for None."""


class Operational:
    """The field says how a run is carried out: it may change when the run is resumed."""


class PerHost(Operational):
    """It may differ between the hosts of a job, too."""


def check_group(group: object, prefix: str = "") -> None:
    """Raise `ValueError` if a field of the group is outside its limits."""
    check_fields(group, lambda name: f"{prefix}{name}", OR_NONE)
