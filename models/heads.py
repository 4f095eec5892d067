"""From the hidden state to four answers: what next, of which category, when, and will it end in a purchase.

The answer to "which category" mixes a softmax over the frequent categories with a pointer over the user's last
32 events, because people return to what they looked at; so a category that no training user saw can be named too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi, sqrt

import torch
from torch import Tensor, nn

from models.columns import WINDOW

COMPONENTS = 3
_MIN_SIGMA = 0.05
_LOG_2PI = log(2 * pi)


@dataclass(frozen=True)
class HeadOutputs:
    """Raw outputs for N states, before any softmax.

    ``action_NA``, ``category_NV`` (index 0 = unseen), ``slot_NW`` (the pointer's, newest slot last), ``gate_N``
    (weight of the pointer), ``purchase_N`` are logits; ``gap_3CN`` holds weights, means and spreads.
    """

    action_NA: Tensor
    category_NV: Tensor
    slot_NW: Tensor
    gate_N: Tensor
    purchase_N: Tensor
    gap: GapMixture


class Heads(nn.Module):
    """Linear heads on the hidden state; all small ones are one matrix product."""

    def __init__(self, hidden: int, n_actions: int, n_categories: int) -> None:
        super().__init__()
        self.n_actions = n_actions
        used = n_actions + 3 * COMPONENTS + 2 + WINDOW
        self.small = nn.Linear(hidden, used)
        self.category = nn.Linear(hidden, n_categories + 1)
        self.content = nn.Parameter(torch.tensor(0.5))
        with torch.no_grad():
            # A newer event is likelier to be returned to: begin with a gentle decay.
            self.small.bias[-WINDOW:] = torch.arange(WINDOW) * 0.1
            self.small.bias[n_actions : n_actions + 3 * COMPONENTS] = torch.tensor(
                [0.0, 0.0, 0.0, 2.0, 5.0, 10.0, 1.0, 1.0, 1.0]
            )

    def forward(self, hidden_NH: Tensor) -> HeadOutputs:
        """All heads of N hidden states."""
        small = self.small(hidden_NH)
        A, G = self.n_actions, self.n_actions + 3 * COMPONENTS
        # Contiguous pieces: a vectorised function may round a strided row's last elements otherwise.
        weight, mean, spread = small[:, A:G].t().contiguous().chunk(3)
        rest = small[:, G : G + 2].t().contiguous()
        return HeadOutputs(
            action_NA=small[:, :A].contiguous(),
            category_NV=self.category(hidden_NH),
            slot_NW=small[:, G + 2 :].contiguous(),
            gate_N=rest[1],
            purchase_N=rest[0],
            gap=GapMixture(weight, mean, spread),
        )

    def mix(
        self, outputs: HeadOutputs, slot_index_NW: Tensor, slot_held_NW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Share the probability of the next category between the vocabulary and the window.

        Args:
            outputs: of ``forward`` for N states.
            slot_index_NW: int64, vocabulary index of each window slot, 0 = unseen.
            slot_held_NW: bool, false for an empty slot or an event without category.

        Returns:
            vocabulary_NV and pointer_NW; a row of both sums to 1. A window without any category gives
            the pointer nothing.
        """
        slots = outputs.slot_NW + self.content * outputs.category_NV.gather(1, slot_index_NW)
        pointer = torch.softmax(slots.masked_fill(~slot_held_NW, -1e9), dim=1)
        share = torch.sigmoid(outputs.gate_N) * slot_held_NW.any(dim=1)
        vocabulary = torch.softmax(outputs.category_NV, dim=1)
        return vocabulary * (1 - share)[:, None], pointer * slot_held_NW * share[:, None]


class GapMixture:
    """The time to the next event as a mixture of three log-normals, N states at once.

    ``y`` is log seconds. A gap at or below the floor (y <= 0, one second) is a lump of probability, not a density:
    clocks and buffers of shops make gaps of zero.
    """

    def __init__(self, weight_CN: Tensor, mean_CN: Tensor, spread_CN: Tensor) -> None:
        """Take raw outputs: log-odds of the components, means of y, and spreads before their positive map."""
        top = weight_CN.amax(dim=0)
        shifted = torch.exp(weight_CN - top)
        self.weight_CN = shifted / (shifted[0] + shifted[1] + shifted[2])
        self.mean_CN = mean_CN
        self.sigma_CN = nn.functional.softplus(spread_CN) + _MIN_SIGMA

    def survival(self, y_N: Tensor | float) -> Tensor:
        """The probability that the next event comes later than exp(y) seconds."""
        z = (y_N - self.mean_CN) / (self.sigma_CN * sqrt(2))
        tail = self.weight_CN * torch.erfc(z)
        return 0.5 * (tail[0] + tail[1] + tail[2])

    def log_likelihood(self, y_N: Tensor) -> Tensor:
        """Log density of y above the floor, log probability of the lump at it."""
        z = (y_N - self.mean_CN) / self.sigma_CN
        density = self.weight_CN * torch.exp(-0.5 * (z * z + _LOG_2PI)) / self.sigma_CN
        above = density[0] + density[1] + density[2]
        at_floor = 1 - self.survival(torch.zeros_like(y_N))
        # 1e-12 bounds the surprise of one gap at 27.6 nats and keeps its gradient finite.
        return torch.log(torch.where(y_N > 0, above, at_floor).clamp_min(1e-12))

    def median(self, iterations: int = 12) -> Tensor:
        """The y that half of the probability lies below, to (spread of the means) / 2**iterations."""
        # A mixture's median lies between the least and the greatest median of its parts.
        low, high = self.mean_CN.amin(dim=0), self.mean_CN.amax(dim=0)
        for _ in range(iterations):
            middle = 0.5 * (low + high)
            later = self.survival(middle) > 0.5
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return (0.5 * (low + high)).clamp_min(0.0)
