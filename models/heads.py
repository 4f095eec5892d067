"""From the hidden state to four answers: what next, of which category, when, and will it end in a purchase.

The answer to "which category" mixes a softmax over the frequent categories with a pointer over the user's last
32 events and a few categories from before them (``models.older``), because people return to what they looked at; so a
category that no training user saw can be named too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.columns import WINDOW
from models.older import OLDER
from models.related import RelatedCategories

COMPONENTS = 3
# What the pointer points at: older categories, then the window, newest last.
SLOTS = OLDER + WINDOW
_MIN_SIGMA = 0.05
_LOG_2PI = log(2 * pi)


@dataclass(frozen=True)
class SmallHeads:
    """What the small heads say of N states.

    ``action_NA``, ``purchase_N`` and ``slot_NW`` (of the pointer's ``SLOTS``, newest last; -1e9 where one holds no
    category) are logits; ``share_N`` is the pointer's share, 0 if no slot holds a category.
    """

    action_NA: Tensor
    gap: GapMixture
    purchase_N: Tensor
    share_N: Tensor
    slot_NW: Tensor


class Heads(nn.Module):
    """Linear heads on what a state says; all but the vocabulary's are one matrix product.

    What they read begins with logits of each next action and of a purchase, which their heads take over.
    """

    def __init__(self, shortcut_width: int, read_width: int, n_actions: int, n_categories: int) -> None:
        super().__init__()
        self.n_actions, self.shortcut_width = n_actions, shortcut_width
        gap = slice(n_actions, n_actions + 3 * COMPONENTS)
        self.purchase_at = gap.stop  # its row in ``small``; those of the pointer's share and slots follow
        self.small = nn.Linear(read_width, gap.stop + 2 + SLOTS)
        self.category = nn.Linear(read_width, n_categories + 1)
        self.content = nn.Parameter(torch.tensor(0.5))
        self.related = nn.Parameter(torch.tensor(1.0))
        self.log_lift: Tensor
        self.register_buffer("log_lift", torch.zeros(n_categories + 1, n_categories + 1))
        with torch.no_grad():
            for layer in (self.small, self.category):
                layer.weight[:, :shortcut_width] = 0.0
            self.small.weight[:n_actions, :n_actions] = torch.eye(n_actions)
            self.small.weight[gap.stop, n_actions] = 1.0
            # A newer event is likelier to be returned to, about as one over its place.
            self.small.bias[-SLOTS:] = -1.1 * torch.arange(SLOTS - 1.0, -1.0, -1.0).log1p()
            self.small.bias[gap] = torch.tensor([0.0, 0.0, 0.0, 2.0, 5.0, 10.0, 1.0, 1.0, 1.0])

    def keep_past_the_trunk(self) -> None:
        """Forget the gradients of other heads than next action and purchase by what leads past the trunk.

        It is theirs alone, so it may be mixed with other logits afterwards (``models.shortcut``).
        """
        past = slice(0, self.shortcut_width)
        if (small := self.small.weight.grad) is not None:
            small[self.n_actions : self.purchase_at, past] = 0.0
            small[self.purchase_at + 1 :, past] = 0.0
        if (category := self.category.weight.grad) is not None:
            category[:, past] = 0.0

    def read(self, small_NK: Tensor, held_NW: Tensor, any_held_N: Tensor) -> SmallHeads:
        """Name the parts of what ``small`` gave.

        Args:
            small_NK: output of ``small``; further columns are ignored.
            held_NW: bool, false for an empty slot or an event without category.
            any_held_N: bool, whether a slot holds any category.
        """
        A, G = self.n_actions, self.purchase_at
        # Contiguous: a vectorised function may round the last elements of a strided row otherwise.
        parts = small_NK[:, A : G + 2].t().contiguous()
        return SmallHeads(
            action_NA=small_NK[:, :A].contiguous(),
            gap=GapMixture.of(*parts[:-2].chunk(3)),
            purchase_N=parts[-2],
            share_N=torch.sigmoid(parts[-1]) * any_held_N,
            slot_NW=torch.where(held_NW, small_NK[:, G + 2 : G + 2 + SLOTS], -1e9),
        )

    def gap(self, small_NK: Tensor) -> GapMixture:
        """The gap's part of ``read``, bit for bit."""
        return GapMixture.of(*small_NK[:, self.n_actions : self.purchase_at].t().contiguous().chunk(3))

    def begin_from(self, related: RelatedCategories) -> None:
        """Take the shares and lifts of categories among training users as the first answer."""
        with torch.no_grad():
            self.category.bias[:] = torch.from_numpy(related.log_share)
            self.log_lift[:] = torch.from_numpy(related.log_lift)

    def mix(
        self,
        category_NV: Tensor,
        slot_NW: Tensor,
        index_NW: Tensor,
        lift_NV: Tensor | None = None,
        sharpness: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Two answers to "which category": of the vocabulary, and of the pointer over its slots.

        Args:
            category_NV: logits of the vocabulary, index 0 = unseen, but for what the newest category lifts.
            slot_NW: of ``read``.
            index_NW: vocabulary index of each slot, 0 = unseen.
            lift_NV: how much likelier each category is after the newest one; the model's own table without it.
            sharpness: one factor for the logits of both, 1 without it.

        Returns:
            vocabulary_NV and pointer_NW, each row summing to 1. The probability of a category is
            (1 - share) of the first and ``share_N`` of the second.
        """
        if lift_NV is None:
            lift_NV = self.log_lift.index_select(0, index_NW[:, -1])
        lift_NV = nn.functional.pad(lift_NV * self.related, (0, category_NV.shape[1] - lift_NV.shape[1]))
        category_NV = category_NV + lift_NV
        pointer_NW = category_NV.gather(1, index_NW) * self.content + slot_NW
        if sharpness is not None:
            category_NV, pointer_NW = sharpness * category_NV, sharpness * pointer_NW
        return torch.softmax(category_NV, dim=1), torch.softmax(pointer_NW, dim=1)


@dataclass(frozen=True)
class GapMixture:
    """The time to the next event as a mixture of three log-normals, N states at once.

    ``y`` is log seconds. A gap at or below the floor (y <= 0, one second) is a lump of probability, not a density:
    clocks and buffers of shops make gaps of zero.
    """

    weight_CN: Tensor
    mean_CN: Tensor
    sigma_CN: Tensor

    @classmethod
    def of(cls, weight_CN: Tensor, mean_CN: Tensor, spread_CN: Tensor) -> GapMixture:
        """From raw outputs: log-odds of the components, means of y, and spreads before their positive map."""
        shifted = torch.exp(weight_CN - weight_CN.amax(dim=0))
        return cls(
            shifted / shifted.sum(dim=0),
            mean_CN,
            nn.functional.softplus(spread_CN) + _MIN_SIGMA,
        )

    def since(self, first: int) -> GapMixture:
        """The states from number ``first`` on."""
        return GapMixture(self.weight_CN[:, first:], self.mean_CN[:, first:], self.sigma_CN[:, first:])

    def __getitem__(self, states: slice | NDArray[np.int64]) -> GapMixture:
        """Some of the states."""
        return GapMixture(self.weight_CN[:, states], self.mean_CN[:, states], self.sigma_CN[:, states])

    def parameters(self) -> NDArray[np.float32]:
        """Weights, means and sigmas, (3, C, N), as ``models.churn`` takes them: copied only when asked for."""
        made: NDArray[np.float32] = torch.stack((self.weight_CN, self.mean_CN, self.sigma_CN)).cpu().numpy()
        return made

    def survival(self, y_N: Tensor | float) -> Tensor:
        """The probability that the next event comes later than exp(y) seconds."""
        return _survival(y_N, 0.5 * self.weight_CN, self.mean_CN, self.sigma_CN * sqrt(2))

    def log_likelihood(self, y_N: Tensor) -> Tensor:
        """Log density of y above the floor, log probability of the lump at it."""
        z = (y_N - self.mean_CN) / self.sigma_CN
        density = self.weight_CN * torch.exp(-0.5 * (z * z + _LOG_2PI)) / self.sigma_CN
        above = density.sum(dim=0)
        at_floor = 1 - self.survival(torch.zeros_like(y_N))
        # 1e-12 bounds the surprise of one gap at 27.6 nats and keeps its gradient finite.
        return torch.log(torch.where(y_N > 0, above, at_floor).clamp_min(1e-12))

    def median(self, within: float, halvings: int = 9) -> Tensor:
        """The y that half of the probability below ``within`` lies below: the median of the gaps that do end.

        People who never come back are in the mixture too, as gaps that end some time; where a log shows three hours,
        they would make the median of all gaps days, which nobody ever saw. Exact to about a thousandth of the span of
        the components.

        Args:
            within: log seconds, the longest gap that counts as an end.
            halvings: of the span.
        """
        half_weight, scale = 0.5 * self.weight_CN, self.sigma_CN * sqrt(2)
        level = 0.5 + 0.5 * _survival(within, half_weight, self.mean_CN, scale)
        # What lies below the median of all gaps lies below the greatest of the components' medians, and three spreads
        # below the least of them hardly anything is left.
        low = (self.mean_CN - 3 * self.sigma_CN).amin(dim=0)
        width = self.mean_CN.amax(dim=0) - low
        for _ in range(halvings):
            width = width * 0.5
            middle = low + width
            low = torch.where(_survival(middle, half_weight, self.mean_CN, scale) > level, middle, low)
        # In so short a piece the survival function is nearly straight.
        above = _survival(low, half_weight, self.mean_CN, scale) - level
        below = level - _survival(low + width, half_weight, self.mean_CN, scale)
        part = above.clamp_min(0.0) / (above + below).clamp_min(1e-9)
        return (low + width * part.clamp(0.0, 1.0)).clamp(0.0, within)


def _survival(y_N: Tensor | float, half_weight_CN: Tensor, mean_CN: Tensor, scale_CN: Tensor) -> Tensor:
    return (half_weight_CN * torch.erfc((y_N - mean_CN) / scale_CN)).sum(dim=0)
