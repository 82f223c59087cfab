"""What the finished shards of a conversion add up to, and when no shard set can come of it."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.convert.assignment import ShardName
from data_prep.convert.output import ConversionError, ConversionPlan
from data_prep.convert.shard import ShardContents, ShardRecord, check_sizes
from data_prep.sources.source import name_some


class ConversionTotals:
    """The records of finished shards, and the sum of their contents."""

    def __init__(self, plan: ConversionPlan, *, max_reject_ratio: float) -> None:
        """`max_reject_ratio`: of all samples; more rejected ones make `add` fail."""
        self.records: dict[ShardName, ShardRecord] = {}
        self.contents = ShardContents()
        self._encoding = plan.encoding
        self._num_samples = sum(plan.num_samples.values())
        self._max_reject_ratio = max_reject_ratio

    def add(self, name: ShardName, record: ShardRecord) -> None:
        """Count in one shard.

        Raises `ConversionError` as soon as it is certain that no shard set can come of it.
        """
        self.contents.merge(record.contents)
        record.contents = ShardContents()  # memory: not a mean image for every shard
        self.records[name] = record
        check_sizes(self.contents.sizes, self._encoding)
        if len(self.contents.rejected) > self._max_reject_ratio * self._num_samples:
            raise ConversionError(
                f"{len(self.contents.rejected)} of {self._num_samples} images so far cannot be "
                "used, more than the allowed share "
                f"(--max-reject-ratio {self._max_reject_ratio:g}): "
                f"{name_some(describe_rejected(self.contents.rejected))}; repair them and "
                "run the same command again, allow more, or convert without them into a new folder"
            )


def describe_rejected(rejected: Sequence[tuple[str, str, str]]) -> list[str]:
    """Each rejected image with what is wrong with it and what to do about it, in order."""
    return sorted(f"{locator} ({what})" for locator, _, what in rejected)
