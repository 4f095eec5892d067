"""Laws of the linear answer: what it says, and that its mixture with the network is what the weights then hold."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from models import shortcut
from models.fitting import tuning_nats
from models.sequences import chunks_of, readings
from models.shortcut import fit_linear, mix_in
from tests.models.unlearned import unlearned


@pytest.fixture(scope="module")
def shop():
    """An unlearned network, and the users of a small shop."""
    network, part = unlearned("lstm", seed=5)
    with torch.no_grad():  # as training leaves them: actions and purchases read one another's logits
        rows = [*range(network.heads.n_actions), network.heads.purchase_at]
        network.heads.small.weight[rows, : network.shortcut_width] += 0.05
    return network, part


@pytest.fixture(scope="module")
def linear(shop):
    network, part = shop
    return fit_linear(network, part, part)


@torch.no_grad()
def small_heads(network, part):
    """Outputs of the small heads before and after every event, in the order of the events."""
    before, after, events = [], [], []
    for reading in readings(network, part, chunks_of(part, None)):
        before.append(network.heads.small(reading.before_NR))
        after.append(network.heads.small(reading.after_NR))
        events.append(reading.event_N)
    order = torch.cat(events).argsort()
    return torch.cat(before)[order], torch.cat(after)[order]


def test_the_network_is_left_as_it_is(shop):
    """Fitting a linear answer changes no weight, and leaves no gradient behind."""
    network, part = shop
    held = copy.deepcopy(network.state_dict())
    assert fit_linear(network, part, part) is not None
    assert all(torch.equal(held[name], now) for name, now in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def test_the_linear_answer_is_ahead_of_what_it_began_as(shop, linear):
    """On the users that it was fitted on it has less loss than the habits with which the network begins."""
    network, part = shop
    started = tuning_nats(network, part)
    alone = copy.deepcopy(network)
    with torch.no_grad():
        alone.direct.copy_(linear.weight_DF)
        alone.habit_weight.zero_()
        rows = torch.tensor([*range(network.heads.n_actions), network.heads.purchase_at])
        alone.heads.small.weight[rows] = 0.0
        alone.heads.small.weight[rows, : network.shortcut_width] = torch.eye(network.shortcut_width)
        alone.heads.small.bias[rows] = linear.bias_D
    fitted = tuning_nats(alone, part)
    assert fitted["action"] < started["action"] - 0.02
    assert fitted["purchase"] < started["purchase"] - 0.02


def test_slices_change_nothing(shop, linear, monkeypatch):
    """However the events are cut into slices, a user's event is read from the event before it."""
    network, part = shop
    monkeypatch.setattr(shortcut, "SLICE", 97)
    cut = fit_linear(network, part, part)
    assert cut.penalty == linear.penalty
    torch.testing.assert_close(cut.weight_DF, linear.weight_DF, atol=0.05, rtol=0.05)


def test_the_mixture_is_in_the_weights(shop, linear):
    """Next action and purchase become the weighed sum of both logits; no other answer changes."""
    network, part = shop
    mixed = copy.deepcopy(network)
    weights = mix_in(mixed, linear, part)
    before, after = small_heads(network, part)
    before_m, after_m = small_heads(mixed, part)
    n_actions, at = network.heads.n_actions, network.heads.purchase_at
    with torch.no_grad():
        own = network.embed(part.inputs)[: len(part.action_N)] @ linear.weight_DF.t()
    seen = own.roll(1, dims=0)
    seen[torch.from_numpy(part.first)] = 0.0
    action, purchase = weights["next_action"], weights["purchase"]
    wanted = action["network"] * before[:, :n_actions]
    wanted += action["linear"] * (seen + linear.bias_D)[:, :n_actions]
    torch.testing.assert_close(before_m[:, :n_actions], wanted, atol=2e-3, rtol=1e-3)
    wanted = purchase["network"] * after[:, at] + purchase["linear"] * (own + linear.bias_D)[:, n_actions]
    torch.testing.assert_close(after_m[:, at], wanted, atol=2e-3, rtol=1e-3)
    others = [column for column in range(before.shape[1]) if column >= n_actions and column != at]
    assert torch.equal(before[:, others], before_m[:, others])


def test_the_tuning_users_lose_nothing_by_the_mixture(shop, linear):
    """On the users that weigh them, the mixture is no worse than the network alone, but for the ridge."""
    network, part = shop
    mixed = copy.deepcopy(network)
    mix_in(mixed, linear, part)
    alone, both = tuning_nats(network, part), tuning_nats(mixed, part)
    assert both["action"] < alone["action"] + 1e-3
    assert both["purchase"] < alone["purchase"] + 1e-3
    assert both["gap"] == pytest.approx(alone["gap"], abs=1e-6)


def test_a_shop_without_purchases_keeps_its_purchase_head(shop, linear):
    """Where no session's end is known nothing is weighed: the network's own purchase stays."""
    network, part = shop
    silent = replace(part, purchase_known_N=torch.zeros_like(part.purchase_known_N))
    mixed = copy.deepcopy(network)
    weights = mix_in(mixed, fit_linear(network, silent, silent), silent)
    assert weights["purchase"] == {"network": 1.0, "linear": 0.0}
    at = network.heads.purchase_at
    torch.testing.assert_close(small_heads(mixed, part)[1][:, at], small_heads(network, part)[1][:, at])


def test_numbers_beyond_reason_give_no_answer(shop):
    """A loss that is not finite gives None, and the network is served without a linear answer."""
    network, part = shop
    absurd = replace(part, inputs=replace(part.inputs, x_NF=part.inputs.x_NF * float("inf")))
    assert fit_linear(network, absurd, absurd) is None
