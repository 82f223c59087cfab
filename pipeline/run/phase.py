"""Where a rank is: one name for its watchdog, its clock, its metrics and the report."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal, assert_never

Label = Literal["data_wait", "h2d", "forward_backward", "sync_wait", "optimizer", "other"]

PHASE_LABELS: Mapping[Label, str] = {
    "data_wait": "waiting for data",
    "h2d": "copying to the device",
    "forward_backward": "forward and backward",
    "sync_wait": "waiting for other ranks",
    "optimizer": "optimizer",
    "other": "other",
}
"""Where the wall time of a step goes: the label `phase` of the metric, and its name in the report.

Together they are all of the step.
"""

_Waits = Literal["always", "if split", "if resident", "except on rank 0"]


class Phase(enum.Enum):
    """What a rank is doing.

    A phase has a text, for the sentence about a rank that hangs; the label of its time, None
    outside of steps; and a condition under which the rank may be waiting for another one.
    """

    READING = "reading a batch", "data_wait", "if resident"
    COPYING = "copying a batch to the device", "h2d", "if split"
    COMPUTING = "computing gradients", "forward_backward", "if split"
    AVERAGING = "averaging gradients", "sync_wait", "always"
    UPDATING = "updating the weights", "optimizer", "always"
    COUNTING = "counting the step", "other", "always"
    LOGGING = "adding up the log interval", "other", "always"
    AGREEING = "agreeing on whether to stop", "other", "always"
    EVALUATING = "evaluating", None, "if split"
    GATHERING = "gathering the evaluation's answers", None, "always"
    SAVING = "saving", None, "except on rank 0"

    def __init__(self, text: str, label: Label | None, waits: _Waits) -> None:
        self.text = text
        self.label = label
        self._waits = waits

    def may_wait(self, *, is_main: bool, is_split: bool, is_resident: bool) -> bool:
        """Whether this rank may be waiting for others: then it is not to blame for a hang.

        `is_split`: its replica is on several ranks; `is_resident`: so are the images in memory.
        """
        match self._waits:
            case "always":
                return True
            case "if split":
                return is_split
            case "if resident":
                return is_resident
            case "except on rank 0":
                return not is_main
            case unknown:
                assert_never(unknown)
