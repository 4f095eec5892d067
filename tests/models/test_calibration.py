"""Laws of calibration: what is folded into the weights, and what it may not change."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from models.calibration import calibrate, slope_and_offset
from models.fitting import tuning_nats
from models.sequences import chunks_of, readings
from tests.models.unlearned import unlearned


@pytest.fixture(scope="module")
def shop():
    """A network that is far too sure of everything, and the users to calibrate it on."""
    network, part = unlearned("gru", seed=11)
    with torch.no_grad():
        for layer in (network.heads.small, network.heads.category):
            layer.weight *= 1.7
            layer.bias *= 1.7
    return network, part


@torch.no_grad()
def answers(network, part):
    """Logits of the small heads around every event."""
    before, after = [], []
    for reading in readings(network, part, chunks_of(part, None)):
        before.append(network.heads.small(reading.before_NR))
        after.append(network.heads.small(reading.after_NR))
    return torch.cat(before), torch.cat(after)


def test_every_head_is_surer_where_it_may_be_and_less_where_not(shop):
    """After it, none of the calibrated heads has a greater loss on the users that it was fitted on; the gap's stays."""
    network, part = shop
    calibrated = copy.deepcopy(network)
    done = calibrate(calibrated, part)
    before, after = tuning_nats(network, part), tuning_nats(calibrated, part)
    assert after["action"] < before["action"] - 0.01
    assert after["purchase"] < before["purchase"] - 0.01
    assert after["category"] < before["category"] - 0.01
    assert after["gap"] == pytest.approx(before["gap"], abs=1e-6)
    assert set(done) == {"next_action", "purchase", "next_category"}
    assert done["next_action"]["value"] > 1


def test_the_order_of_answers_stays(shop):
    """The likeliest action stays the likeliest, and the users likeliest to buy stay so."""
    network, part = shop
    calibrated = copy.deepcopy(network)
    calibrate(calibrated, part)
    (before, after), (before_c, after_c) = answers(network, part), answers(calibrated, part)
    actions = slice(0, network.heads.n_actions)
    assert torch.equal(before[:, actions].argmax(1), before_c[:, actions].argmax(1))
    at = network.heads.purchase_at
    rank, rank_c = after[:, at].argsort(stable=True), after_c[:, at].argsort(stable=True)
    assert (after[:, at][rank_c].diff() >= -1e-4).all()
    assert (after_c[:, at][rank].diff() >= -1e-4).all()


def test_calibrating_again_changes_less(shop):
    """What is folded into the weights is what was fitted: the second time every number stays nearer to its start."""
    network, part = shop
    calibrated = copy.deepcopy(network)
    first, second = calibrate(calibrated, part), calibrate(calibrated, part)
    for head, number in (("next_action", "value"), ("purchase", "slope"), ("next_category", "value")):
        assert abs(second[head][number] - 1) < abs(first[head][number] - 1)
    assert second["next_action"]["value"] == pytest.approx(1, abs=0.05)


def test_a_head_without_answers_is_left_alone(shop):
    """Without a purchase action no purchase is calibrated, and its weights stay."""
    network, part = shop
    silent = copy.deepcopy(part)
    silent.purchase_known_N[:] = False
    calibrated = copy.deepcopy(network)
    done = calibrate(calibrated, silent)
    assert "purchase" not in done
    at = network.heads.purchase_at
    assert torch.equal(network.heads.small.weight[at], calibrated.heads.small.weight[at])


def test_slope_and_offset_find_what_was_wrong():
    """Log-odds that are twice too great and one too high come back to nearly half, and down."""
    rng = np.random.default_rng(2)
    honest = rng.normal(-1, 1.5, 20_000)
    label = torch.from_numpy((rng.random(len(honest)) < 1 / (1 + np.exp(-honest))).astype(np.float32))
    slope, offset = slope_and_offset(torch.from_numpy(2 * honest + 1).float(), label)
    assert slope == pytest.approx(0.5, abs=0.06)
    assert offset == pytest.approx(-0.5, abs=0.15)


def test_no_answer_at_all_is_no_reason_to_be_sure(shop):
    """Where nobody buys, the ridge keeps the purchase finite and its slope positive."""
    logit = torch.linspace(-3, 1, 500)
    slope, offset = slope_and_offset(logit, torch.zeros(500))
    assert np.isfinite([slope, offset]).all()
    assert slope > 0
    assert offset < 0
