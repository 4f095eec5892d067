"""Laws of the loss: every answered event counts once, and heads find their own weight."""

from __future__ import annotations

import pytest
import torch

from models.losses import MOST_CHANGE, WEIGHTS, HeadWeights, stopping_loss


def terms(**nats: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(nats.get(name, [])) for name in WEIGHTS}


def learned(given: dict[str, torch.Tensor], updates: int = 400) -> dict[str, float]:
    """The weights after so many updates on the same nats."""
    weights = HeadWeights()
    optimiser = torch.optim.Adam(weights.parameters(), lr=0.05)
    for _ in range(updates):
        optimiser.zero_grad()
        weights(given, events=4).backward()
        optimiser.step()
    return weights.as_dict()


def test_weights_start_where_they_are_declared():
    """Learning begins at the table's weights."""
    assert HeadWeights().as_dict() == pytest.approx(WEIGHTS, abs=1e-3)


def test_a_silent_head_keeps_its_weight_and_adds_nothing():
    """No answer, no gradient: neither the head nor its weight moves."""
    after = learned(terms(action=[1.0, 1.0, 1.0, 1.0]))
    assert after["purchase"] == pytest.approx(WEIGHTS["purchase"], abs=1e-3)
    assert after["action"] != pytest.approx(WEIGHTS["action"], abs=1e-2)


def test_a_weight_goes_to_half_the_inverse_of_its_head_s_nats():
    """The stationary point of exp(-s) L + s / 2, whatever share of the events a head answers."""
    after = learned(terms(action=[0.4] * 4, category=[2.0] * 4, purchase=[0.8]))
    assert after["action"] == pytest.approx(1.25, rel=0.02)
    assert after["category"] == pytest.approx(0.25, rel=0.02)
    assert after["purchase"] == pytest.approx(0.625, rel=0.02)


def test_weights_are_bounded_where_a_density_makes_nats_negative():
    """exp(-s) L + s / 2 has no minimum below zero nats; the bound holds the weight."""
    assert learned(terms(gap=[-2.0] * 4), updates=4000)["gap"] <= MOST_CHANGE * WEIGHTS["gap"] + 1e-3


def test_stopping_watches_fixed_weights():
    """The goal does not move with what is learned."""
    assert stopping_loss(dict.fromkeys(WEIGHTS, 1.0)) == pytest.approx(sum(WEIGHTS.values()))
