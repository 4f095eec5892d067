"""How sure the heads may be: a few numbers each, fitted on the tuning users and folded into the weights.

So what is served, evaluated and told as surprise are the same calibrated answers, and serving costs nothing more. The
gap head has none: its likelihood, in which silences that have not ended count as censored, is fitted as a
distribution, and how long silences end is longer than what a log shows.

Source: temperatures after Guo et al. (2017); slope and offset after Platt (1999).
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.network import Network
from models.sequences import Sequences, chunks_of, readings

# Nats an event for each unit by which a number leaves its place, squared. Few of the tuning users' sessions hold a
# purchase: a slope that was fitted on them freely (0.4 to 0.8 on folds of Taobao users) made others' loss greater.
RIDGE = 0.01
# Of the tuning users' events, spread evenly, that the category head's numbers are fitted on.
MOST_EVENTS = 4000


@torch.no_grad()
def calibrate(network: Network, tune: Sequences) -> dict[str, Any]:
    """Fit every head's numbers on the tuning users, and change the weights by them.

    Returns:
        What was done, by head, as a manifest keeps it.
    """
    later_N = torch.ones_like(tune.action_N, dtype=torch.bool)
    later_N[torch.from_numpy(tune.first).to(later_N.device)] = False
    before, after, events = [], [], []
    for reading in readings(network, tune, chunks_of(tune, None)):
        before.append(reading.before_NR)
        after.append(reading.after_NR)
        events.append(reading.event_N)
    event_N, before_NR, after_NR = torch.cat(events), torch.cat(before), torch.cat(after)
    done: dict[str, Any] = {}
    held = later_N[event_N]
    done["next_action"] = _next_action(network, before_NR[held], tune.action_N[event_N[held]])
    known = tune.purchase_known_N[event_N]
    if known.any():
        done["purchase"] = _purchase(network, after_NR[known], tune.purchase_N[event_N[known]])
    named = held & (tune.code_N[event_N] != 0)
    if named.any():
        done["next_category"] = _next_category(network, tune, event_N[named], before_NR[named])
    return done


def temperature(logits_NA: Tensor, action_N: Tensor) -> float:
    """The divisor of the logits with the least log-loss, from 0.5 to 2."""
    candidates = torch.logspace(-1, 1, 81, base=2.0)
    losses = [functional.cross_entropy(logits_NA / t, action_N) for t in candidates]
    return float(candidates[torch.stack(losses).argmin()])


def slope_and_offset(logit_N: Tensor, label_N: Tensor) -> tuple[float, float]:
    """Of the logits, with the least log-loss of labels (0 or 1) and ``RIDGE``."""

    def loss(numbers: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(numbers[0] * logit_N + numbers[1], label_N)

    slope, offset = fitted_numbers(loss, [1.0, 0.0])
    return slope, offset


def _next_action(network: Network, before_NR: Tensor, action_N: Tensor) -> dict[str, Any]:
    rows = slice(0, network.heads.n_actions)
    logits_NA = network.heads.small(before_NR)[:, rows]
    divisor = temperature(logits_NA.cpu(), action_N.cpu())
    _scale(network.heads.small, rows, 1 / divisor)
    return {"method": "temperature, in the weights", "value": round(divisor, 4)}


def _purchase(network: Network, after_NR: Tensor, label_N: Tensor) -> dict[str, Any]:
    heads = network.heads
    row = slice(heads.purchase_at, heads.purchase_at + 1)
    logit_N = heads.small(after_NR)[:, heads.purchase_at]
    slope, offset = slope_and_offset(logit_N.cpu(), label_N.cpu())
    _scale(heads.small, row, slope, offset)
    return {
        "method": "slope and offset of the log-odds, in the weights",
        "slope": round(slope, 4),
        "offset": round(offset, 4),
    }


def _next_category(network: Network, tune: Sequences, event_N: Tensor, before_NR: Tensor) -> dict[str, Any]:
    """One temperature for the vocabulary and the pointer; what the pointer's share is stays as it was learned."""
    at = np.linspace(0, len(event_N) - 1, min(len(event_N), MOST_EVENTS)).astype(np.int64)
    chosen = torch.from_numpy(at).to(event_N.device)
    event_N, before_NR, heads = event_N[chosen], before_NR[chosen], network.heads
    codes_NW, index_NW = tune.codes_before_NW[event_N], tune.index_before_NW[event_N]
    held_NW = codes_NW != 0
    out = heads.read(heads.small(before_NR), held_NW, held_NW.any(dim=1))
    category_NV, lift_NV = heads.category(before_NR), tune.lift_LV[tune.lift_N[event_N]]
    pointed_NW = codes_NW == tune.code_N[event_N, None]

    def loss(factor: Tensor) -> Tensor:
        sharpness = factor.to(category_NV.device)
        vocabulary, pointer = heads.mix(category_NV, out.slot_NW, index_NW, lift_NV, sharpness)
        by_vocabulary_N = vocabulary.gather(1, tune.index_N[event_N, None])[:, 0]
        probability_N = (1 - out.share_N) * by_vocabulary_N + out.share_N * (pointer * pointed_NW).sum(dim=1)
        return -torch.log(probability_N.clamp_min(1e-9)).mean()

    (factor,) = fitted_numbers(loss, [1.0])
    first_slot = heads.purchase_at + 2
    _scale(heads.small, slice(first_slot, None), factor)
    _scale(heads.category, slice(None), factor)
    heads.related.mul_(factor)
    return {"method": "temperature, in the weights", "value": round(1 / factor, 4)}


def _scale(layer: torch.nn.Linear, rows: slice, factor: float, offset: float = 0.0) -> None:
    layer.weight[rows] *= factor
    layer.bias[rows] = layer.bias[rows] * factor + offset


@torch.enable_grad()
def fitted_numbers(loss: Callable[[Tensor], Tensor], start: list[float]) -> list[float]:
    """A few numbers with the least loss, drawn to where they start by ``RIDGE``.

    The first is a factor of logits; one that is not positive, which would turn their order round, is not taken.
    """
    at = torch.tensor(start)
    numbers = at.clone().requires_grad_()
    optimiser: Any = torch.optim.LBFGS([numbers], max_iter=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = loss(numbers) + RIDGE * (numbers - at).square().sum()
        total.backward()
        return total

    optimiser.step(closure)
    fitted: list[float] = numbers.detach().tolist()
    return fitted if all(map(isfinite, fitted)) and fitted[0] > 0 else start
