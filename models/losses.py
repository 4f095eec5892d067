"""What each head is asked, in nats an event, and how the heads are weighed against each other.

Every event counts once, whatever the length of its user's history; a head is silent where its answer is unknown.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.network import Network
from models.sequences import Reading, Sequences

# How much each head counts when training starts, and always in the decision when to stop.
WEIGHTS = {"action": 1.0, "category": 0.3, "gap": 0.3, "purchase": 0.5}
# Learned weights stay within this factor of where they start. A head's nats say how noisy its answers are, not what the
# others learn from them: without a bound purchases, rarely answered and often the same, outgrew all others.
MOST_CHANGE = 1.5
# The teachers' part of a target. A purchase is one answer for a whole session, and few sessions have one.
SOFT_ACTION, SOFT_PURCHASE = 0.5, 0.7
DROPOUT = 0.3


class HeadWeights(nn.Module):
    """The weight of each head, learned as the uncertainty of its answers.

    Source: Kendall, Gal & Cipolla (2018): the sum over heads of exp(-s) x nats + s / 2, an answer each; s is bounded
    here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw_H = nn.Parameter(torch.zeros(len(WEIGHTS)))
        self.start_H: Tensor
        self.register_buffer("start_H", torch.tensor([-log(weight) for weight in WEIGHTS.values()]))

    def forward(self, terms: dict[str, Tensor], events: int) -> Tensor:
        """The loss an event.

        Args:
            terms: of ``head_terms``.
            events: that the terms are of; a head's term has fewer values where it is silent.
        """
        s_H = self._log_uncertainty()
        total = s_H.new_zeros(())
        for s, name in zip(s_H, WEIGHTS, strict=True):
            total = total + torch.exp(-s) * terms[name].sum() + 0.5 * s * len(terms[name])
        return total / events

    def _log_uncertainty(self) -> Tensor:
        return self.start_H + log(MOST_CHANGE) * torch.tanh(self.raw_H)

    def as_dict(self) -> dict[str, float]:
        """The weights now."""
        s_H = self._log_uncertainty().detach()
        return {name: round(float(torch.exp(-s)), 4) for s, name in zip(s_H, WEIGHTS, strict=True)}


def stopping_loss(nats: dict[str, float]) -> float:
    """What early stopping watches: the tuning users' nats an event of each head, with fixed weights.

    Learned weights would move the goal while it is aimed at.
    """
    return sum(weight * nats[name] for name, weight in WEIGHTS.items())


def head_terms(network: Network, part: Sequences, reading: Reading) -> dict[str, Tensor]:
    """Nats of each head, one value for each event of the reading whose answer is known."""
    heads, event_N = network.heads, reading.event_N
    before_NR, after_NR = _dropped(network, reading.before_NR), _dropped(network, reading.after_NR)
    codes_NW = part.codes_before_NW[event_N]
    held_NW = codes_NW != 0
    out = heads.read(heads.small(before_NR), held_NW, held_NW.any(dim=1))
    action = action_nats(out.action_NA, part, event_N, taught=network.training)

    named = part.code_N[event_N] != 0
    lift_NV = part.lift_LV[part.lift_N[event_N]]
    vocabulary, pointer = heads.mix(
        heads.category(before_NR), out.slot_NW, part.index_before_NW[event_N], lift_NV
    )
    pointed = codes_NW == part.code_N[event_N, None]
    by_vocabulary = vocabulary.gather(1, part.index_N[event_N, None])[:, 0]
    probability = (1 - out.share_N) * by_vocabulary + out.share_N * (pointer * pointed).sum(dim=1)
    category = -torch.log(probability.clamp_min(1e-9))[named]

    # Gap and purchase do not look at the window: which one is given does not matter.
    later = heads.read(heads.small(after_NR), held_NW, held_NW.any(dim=1))
    log_gap, follows = part.log_gap_N[event_N], part.follows_N[event_N]
    silent = -torch.log(later.gap.survival(log_gap).clamp_min(1e-9))
    gap = torch.where(follows, -later.gap.log_likelihood(log_gap), silent)

    purchase = purchase_nats(later.purchase_N, part, event_N, taught=network.training)
    return {"action": action, "category": category, "gap": gap, "purchase": purchase}


def action_nats(logits_NA: Tensor, part: Sequences, event_N: Tensor | slice, *, taught: bool) -> Tensor:
    """Nats of the next action, one an event.

    Args:
        logits_NA: before each event.
        event_N: which events of the part.
        taught: whether teachers are listened to, where there are any.
    """
    action_N = functional.cross_entropy(logits_NA, part.action_N[event_N], reduction="none")
    if not taught or part.soft_action_NA is None:
        return action_N
    soft_NA = part.soft_action_NA[event_N]
    told_N = -(soft_NA * torch.log_softmax(logits_NA, dim=1)).sum(dim=1)
    # Teachers say nothing of a user's first event.
    return torch.where(soft_NA.any(dim=1), torch.lerp(action_N, told_N, SOFT_ACTION), action_N)


def purchase_nats(logit_N: Tensor, part: Sequences, event_N: Tensor | slice, *, taught: bool) -> Tensor:
    """Nats of the purchase, one an event of a session whose end is known; arguments as of ``action_nats``."""
    known_N, bought_N = part.purchase_known_N[event_N], part.purchase_N[event_N]
    if taught and part.soft_purchase_N is not None:
        bought_N = torch.lerp(bought_N, part.soft_purchase_N[event_N], SOFT_PURCHASE)
    return functional.binary_cross_entropy_with_logits(logit_N[known_N], bought_N[known_N], reduction="none")


def _dropped(network: Network, read_NR: Tensor) -> Tensor:
    """Some of the hidden vector set to 0; the shortcut stays, as half of a user's habits are other habits."""
    if not network.training:
        return read_NR
    D = network.shortcut_width
    return torch.cat([read_NR[:, :D], functional.dropout(read_NR[:, D:], DROPOUT)], dim=1)
