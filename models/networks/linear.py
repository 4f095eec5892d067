"""A linear map of one event's features: what the counters of a state row know without any learned memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.trunk import HALF_MAX, Trunk


class Linear(Trunk):
    """The state is the hidden vector of the last event alone, S = H numbers: 128 bytes a user for 64 units.

    With the linear heads it is multinomial logistic regression of rank H, and the yardstick of what memory is worth:
    all that it knows of the past are the features that the fold counts (gaps, ages and counts of actions).
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.state_width = hidden
        self.weight = nn.Parameter(torch.empty(hidden, inputs))
        self.bias = nn.Parameter(torch.zeros(hidden))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x_TBF: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - no memory
        """See ``Trunk.forward``; the state before is not read."""
        h_TBH = nn.functional.linear(x_TBF, self.weight, self.bias)
        return h_TBH, h_TBH[-1]

    def prepared(self) -> PreparedLinear:
        """The same weights laid out for serving."""
        return PreparedLinear(self)


class PreparedLinear:
    """A trained linear map for serving."""

    room = 0

    def __init__(self, linear: Linear) -> None:
        self.hidden = linear.hidden
        self.weight_FH = linear.weight.detach().t().contiguous()
        self.bias_H = linear.bias.detach().clone()

    def step(self, x_NK: Tensor, old_NS: Tensor, new_NS: Tensor) -> tuple[Tensor]:  # noqa: ARG002 - no memory
        """See ``PreparedTrunk.step``."""
        h = torch.addmm(self.bias_H, x_NK, self.weight_FH)
        new_NS.copy_(h.clamp(-HALF_MAX, HALF_MAX))
        return (h,)
