"""The linear answer: fitted by itself, where nothing is left to chance, and mixed with what the network learned.

Next action and purchase have logits that are linear in an event's numbers (``models.network``). Learned together with
the trunk by small noisy steps they end worse than regression alone on some logs, and better on others, where the trunk
finds what no linear answer says. So both are fitted, the tuning users weigh them, and as both are linear past the
trunk, their mixture goes into the same weights: serving costs nothing more.

Source: regression with an L2 penalty by L-BFGS; linear stacking after Wolpert (1992) and Breiman (1996).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.calibration import fitted_numbers
from models.features import LAGS, numeric_width
from models.losses import WEIGHTS, action_nats, purchase_nats
from models.network import Network
from models.sequences import Sequences, chunks_of, readings

__all__ = ["LinearAnswer", "fit_linear", "mix_in"]

#: Of the squares of the learned weights, nats an event; each fit starts from the more penalised one, and the tuning
#: users choose. The first is that of logistic regression with C = 0.01 on 50,000 events.
PENALTIES = (2e-3, 7e-4, 2.5e-4)
MOST_STEPS = 60
#: Events whose numbers are held as one matrix.
SLICE = 32_768


@dataclass(frozen=True)
class LinearAnswer:
    """Logits of each next action and of a purchase, out of an event's numbers.

    Attributes:
        weight_DF: (A + 1) x F, as ``Network.shortcut_weight``; 0 for the embeddings of categories and items.
        bias_D: A + 1.
        penalty: which the tuning users chose.
    """

    weight_DF: Tensor
    bias_D: Tensor
    penalty: float


def fit_linear(
    network: Network, fit: Sequences, tune: Sequences, told: Callable[[float], object] = lambda _: None
) -> LinearAnswer | None:
    """Regression on the numbers that the network reads, habits unpenalised.

    Args:
        network: is left as it is; its embeddings of actions are read.
        fit: of the users that are fitted on, on the network's device.
        tune: of the tuning users, who choose the penalty.
        told: after each pass over the events, the nats an event.

    Returns:
        None where no finite answer was found.
    """
    a, heads = network.architecture, network.heads
    direct = torch.zeros_like(network.direct, requires_grad=True)
    habit = network.habit_weight.detach().clone().requires_grad_()
    bias = heads.small.bias[[*range(a.n_actions), heads.purchase_at]].detach().clone().requires_grad_()

    @torch.no_grad()
    def loss_of(part: Sequences) -> float:
        weight_DF = network.shortcut_weight(direct, habit)
        nats = (_nats(network, part, at, weight_DF, bias, learning=False) for at in _slices(network, part))
        return sum(map(float, nats))

    best, answer = float("inf"), None
    if not isfinite(loss_of(fit)):
        return None
    for penalty in PENALTIES:
        _minimise(network, (direct, habit, bias), fit, penalty, told)
        with torch.no_grad():
            weight_DF, loss = network.shortcut_weight(direct, habit), loss_of(tune)
            if not loss < best:
                # A weaker penalty takes longer, and the loss has one minimum.
                break
            best, answer = loss, LinearAnswer(weight_DF.clone(), bias.detach().clone(), penalty)
    return answer


@torch.no_grad()
def mix_in(network: Network, answer: LinearAnswer, tune: Sequences) -> dict[str, dict[str, float]]:
    """Let next action and purchase become the mixture of the network's logits and the linear ones.

    Returns:
        The weights of both, by head, as the tuning users like them best.
    """
    heads, n_actions = network.heads, network.architecture.n_actions
    small_before, small_after, events = [], [], []
    for reading in readings(network, tune, chunks_of(tune, None)):
        small_before.append(heads.small(reading.before_NR)[:, :n_actions].cpu())
        small_after.append(heads.small(reading.after_NR)[:, heads.purchase_at].cpu())
        events.append(reading.event_N)
    event_N = torch.cat(events)
    own_ND = network.embed(tune.inputs)[: len(tune.action_N)] @ answer.weight_DF.t()
    before_ND = own_ND.roll(1, dims=0)
    opens_N = torch.zeros_like(tune.action_N, dtype=torch.bool)
    opens_N[torch.from_numpy(tune.first).to(opens_N.device)] = True
    linear_NA = ((before_ND + answer.bias_D)[:, :n_actions])[event_N].cpu()
    linear_N = (own_ND + answer.bias_D)[event_N, n_actions].cpu()
    later_N, action_N = ~opens_N[event_N].cpu(), tune.action_N[event_N].cpu()
    network_NA, network_N = torch.cat(small_before), torch.cat(small_after)
    known_N, bought_N = tune.purchase_known_N[event_N].cpu(), tune.purchase_N[event_N].cpu()

    def action_loss(w: Tensor) -> Tensor:
        logits_NA = w[0] * network_NA[later_N] + w[1] * linear_NA[later_N]
        return functional.cross_entropy(logits_NA, action_N[later_N])

    def purchase_loss(w: Tensor) -> Tensor:
        logit_N = w[0] * network_N[known_N] + w[1] * linear_N[known_N]
        return functional.binary_cross_entropy_with_logits(logit_N, bought_N[known_N])

    mixed = {"next_action": fitted_numbers(action_loss, [0.5, 0.5]) if later_N.any() else [1.0, 0.0]}
    mixed["purchase"] = fitted_numbers(purchase_loss, [0.5, 0.5]) if known_N.any() else [1.0, 0.0]
    D = network.shortcut_width
    at = torch.tensor([*range(n_actions), heads.purchase_at], device=own_ND.device)
    of_network, of_linear = (
        torch.tensor([mixed["next_action"][which]] * n_actions + [mixed["purchase"][which]], device=at.device)
        for which in (0, 1)
    )
    read_DR = heads.small.weight[at] * of_network[:, None]
    weight_DF = read_DR[:, :D] @ network.shortcut_weight() + of_linear[:, None] * answer.weight_DF
    # What leads past the trunk is now one number a logit, which its head takes as it is.
    read_DR[:, :D] = torch.eye(D, device=at.device)
    heads.small.weight[at] = read_DR
    heads.small.bias[at] = of_network * heads.small.bias[at] + of_linear * answer.bias_D
    network.direct.copy_(weight_DF)
    network.habit_weight.zero_()
    return {
        head: {"network": round(network_weight, 4), "linear": round(linear_weight, 4)}
        for head, (network_weight, linear_weight) in mixed.items()
    }


def _minimise(
    network: Network,
    learned: tuple[Tensor, Tensor, Tensor],
    fit: Sequences,
    penalty: float,
    told: Callable[[float], object],
) -> None:
    direct, habit, bias = learned
    slices = list(_slices(network, fit))  # of all passes: what they read never changes
    optimiser: Any = torch.optim.LBFGS(learned, max_iter=MOST_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = 0.5 * penalty * direct.square().sum()
        total.backward()
        value: Tensor = total.detach()
        # The graph of the weights is built anew for each slice: what a slice has used is free again.
        for slice_ in slices:
            nats = _nats(network, fit, slice_, network.shortcut_weight(direct, habit), bias, learning=True)
            nats.backward()
            value = value + nats.detach()
        told(float(value))
        return value

    optimiser.step(closure)


def _slices(network: Network, part: Sequences) -> Iterator[tuple[int, int, Tensor]]:
    """First event and end of each slice, and the numbers of its events and of the one before it, (1 + N, F)."""
    a = network.architecture
    # Categories and items are for the trunk: their first columns are names, not numbers.
    width = numeric_width(a.n_actions, a.n_extras) + a.action_embedding * (1 + LAGS)
    n = len(part.action_N)
    for start in range(0, n, SLICE):
        end = min(start + SLICE, n)
        index_N = torch.arange(start - 1, end, device=part.action_N.device).clamp_min(0)
        with torch.no_grad():
            x_NF = network.embed(part.inputs.take(index_N))
            x_NF[:, width:] = 0.0
        yield start, end, x_NF


def _nats(
    network: Network,
    part: Sequences,
    slice_: tuple[int, int, Tensor],
    weight_DF: Tensor,
    bias_D: Tensor,
    *,
    learning: bool,
) -> Tensor:
    """Nats of next action and purchase in a slice, an event of the whole part; ``learning`` listens to teachers."""
    start, end, x_NF = slice_
    n_actions, n = network.architecture.n_actions, len(part.action_N)
    logits_ND = functional.linear(x_NF, weight_DF)
    first = torch.from_numpy(part.first)
    opens_N = torch.zeros(end - start, 1, dtype=torch.bool)
    opens_N[first[(first >= start) & (first < end)] - start] = True
    # A user's first action is seen from nothing.
    before_NA = torch.where(opens_N.to(x_NF.device), 0.0, logits_ND[:-1, :n_actions])
    action_NA = before_NA + bias_D[:n_actions]
    events = slice(start, end)
    action_N = action_nats(action_NA, part, events, taught=learning)
    purchase_N = purchase_nats(logits_ND[1:, n_actions] + bias_D[n_actions], part, events, taught=learning)
    return (WEIGHTS["action"] * action_N.sum() + WEIGHTS["purchase"] * purchase_N.sum()) / n
