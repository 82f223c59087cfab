"""Tells a network that only guesses from one that learns."""

from __future__ import annotations

import math

_TOLERANCE = 0.005


def is_guessing(loss: float, num_classes: int) -> bool:
    """Whether a cross-entropy is within 0.5 % of ln(classes), that of equal odds for all classes.

    AlexNet begins there, and with an unlucky initialisation stays: Caffe's authors called it a
    flat loss.
    """
    if num_classes < 2:
        return False
    chance = math.log(num_classes)
    return abs(loss - chance) <= _TOLERANCE * chance
