"""Dropout whose masks are a pure function of the sample, in its own form and in that of 2012."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import nn

from pipeline.config.model import DropoutForm

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST_FACTOR = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND_FACTOR = 0x94D049BB133111EB - (1 << 64)
_UNITS_PER_LAYER = 1 << 32
_UNITS_PER_HASH = 4


class Dropout(nn.Module):
    """Drops units with a probability, by a mask that (key of the sample, layer, unit) decides.

    So the same sample has the same mask on any number of ranks, and a rank that holds a part of a
    layer's units, from `first_unit` on, draws the part of the mask that is theirs. The probability
    is met to within 2**-16. In evaluation nothing is dropped and keys are not needed.

    inverted    training divides what stays by the probability of staying, as torch does
    original    evaluation multiplies by it instead (the 2012 code, `docs/fidelity.md`)
    """

    def __init__(
        self,
        probability: float,
        *,
        layer: int,
        first_unit: int = 0,
        form: DropoutForm = "inverted",
    ) -> None:
        super().__init__()
        assert 0 <= probability < 1, probability
        self.probability = probability
        match form:
            case "inverted":
                self._in_training, self.factor_in_evaluation = 1 / (1 - probability), 1.0
            case "original":
                self._in_training, self.factor_in_evaluation = 1.0, 1 - probability
            case unknown:
                assert_never(unknown)
        self._first = layer * _UNITS_PER_LAYER + first_unit

    def forward(self, units: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """Units N×U, keys int64 N (`pipeline.data.order.randomness.dropout_keys`), N×U out."""
        if self.probability == 0:
            return units
        if not self.training:
            factor = self.factor_in_evaluation
            return units if factor == 1 else units * factor
        assert keys is not None, "training needs the samples' keys"
        kept = units * self._mask(keys, units.shape[1])
        return kept if self._in_training == 1 else kept.mul_(self._in_training)

    def _mask(self, keys: torch.Tensor, num_units: int) -> torch.Tensor:
        """Which units stay, bool N×U.

        Hashing is what costs time, so four units share a hash of 64 bits: 16 independent ones each.
        """
        first, offset = divmod(self._first, _UNITS_PER_HASH)
        end = -(-(self._first + num_units) // _UNITS_PER_HASH)
        hashes = _mix(keys[:, None] ^ _mix(torch.arange(first, end, device=keys.device)))
        bits = hashes.view(torch.int16)[:, offset : offset + num_units]
        # The largest int16 stays at any probability: a threshold beyond it would wrap around
        return bits >= min(round(self.probability * (1 << 16)) - (1 << 15), (1 << 15) - 1)


class KeyedSequential(nn.Sequential):
    """Modules one after the other; each `Dropout` among them gets the samples' keys."""

    def forward(self, units: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Units N×…, keys int64 N for training, N×… out."""
        for module in self:
            units = module(units, keys) if isinstance(module, Dropout) else module(units)
        return units


def _mix(state: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (`pipeline.data.order.randomness`) on int64: it wraps around."""
    state = state + _GOLDEN_GAMMA
    state.bitwise_xor_(_shifted(state, 30)).mul_(_FIRST_FACTOR)
    state.bitwise_xor_(_shifted(state, 27)).mul_(_SECOND_FACTOR)
    return state.bitwise_xor_(_shifted(state, 31))


def _shifted(state: torch.Tensor, places: int) -> torch.Tensor:
    """Right shift that brings in zeros; int64's own brings in the sign."""
    return (state >> places).bitwise_and_((1 << (64 - places)) - 1)
