"""What a network answers, from its logits: in evaluation and in prediction alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

TOP_K = 5
"""With this many classes or fewer, top-5 says nothing and is left out."""


def scores_of_views(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logarithms of each image's mean probabilities, float64 N×C, of the logits N×C of each view.

    As probabilities, or rounded, what is unlikely would lose its order.
    """
    views = torch.stack([view.double().log_softmax(1) for view in logits])
    return views.logsumexp(0) - math.log(len(logits))


def ranked(scores: torch.Tensor) -> torch.Tensor:
    """All classes of each image, int64 N×C, the most probable first; of equals the first one."""
    return scores.sort(dim=1, descending=True, stable=True).indices
