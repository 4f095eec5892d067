"""One temperature for the next action, fitted on the tuning users and folded into the weights.

Source: Guo et al. (2017), temperature scaling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.network import Network


def temperature(logits_NA: Tensor, action_N: Tensor) -> float:
    """The divisor of the logits with the least log-loss, from 0.5 to 2."""
    candidates = torch.logspace(-1, 1, 81, base=2.0)
    losses = [torch.nn.functional.cross_entropy(logits_NA / t, action_N) for t in candidates]
    return float(candidates[torch.stack(losses).argmin()])


def apply(network: Network, divisor: float) -> None:
    """Divide the next-action logits for ever: serving costs nothing more."""
    small = network.heads.small
    with torch.no_grad():
        small.weight[: network.heads.n_actions] /= divisor
        small.bias[: network.heads.n_actions] /= divisor
