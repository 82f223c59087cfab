"""Marks of fields that say when a config with another value is still that of the same run."""

from __future__ import annotations


class Operational:
    """The field says how a run is carried out: it may change when the run is resumed."""


class PerHost(Operational):
    """It may differ between the hosts of a job, too."""
