"""Laws that every trunk keeps."""

from __future__ import annotations

import pytest
import torch

from models.network import TRUNKS


@pytest.fixture(params=sorted(TRUNKS))
def trunk(request):
    torch.manual_seed(3)
    return TRUNKS[request.param](10, 16)


def test_stepwise_equals_full_sequence(trunk):
    """``step`` is one time step of ``forward``."""
    x_TBF = torch.randn(20, 5, 10)
    hidden_TBH, last = trunk(x_TBF, torch.zeros(5, trunk.state_width))
    state = torch.zeros(5, trunk.state_width)
    for x_BF, hidden_BH in zip(x_TBF, hidden_TBH, strict=True):
        state = trunk.step(x_BF, state)
        # Matrix products of other row counts round differently in float32.
        torch.testing.assert_close(state[:, : trunk.hidden], hidden_BH, atol=1e-5, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=0)


def test_a_sequence_in_chunks_equals_the_whole(trunk):
    """The carried state is all that a later chunk needs."""
    x_TBF = torch.randn(20, 5, 10)
    whole, _ = trunk(x_TBF, torch.zeros(5, trunk.state_width))
    first, state = trunk(x_TBF[:8], torch.zeros(5, trunk.state_width))
    second, _ = trunk(x_TBF[8:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, atol=1e-5, rtol=0)


def test_the_future_changes_nothing_before_it(trunk):
    """Hidden states depend on earlier inputs only."""
    x_TBF = torch.randn(12, 3, 10)
    other = x_TBF.clone()
    other[7:] += 1
    before, _ = trunk(x_TBF, torch.zeros(3, trunk.state_width))
    after, _ = trunk(other, torch.zeros(3, trunk.state_width))
    assert torch.equal(before[:7], after[:7])
    assert not torch.equal(before[7:], after[7:])


def test_prepared_equals_step(trunk):
    """The weights laid out for serving compute the same step."""
    prepared = trunk.prepared()
    x, state = torch.randn(64, 10), torch.randn(64, trunk.state_width).half()
    expected = trunk.step(x, state.float())
    room = torch.empty(64, len(prepared.weight_KG) - 10)
    with torch.inference_mode():
        made = torch.cat(prepared.step(torch.cat([x, room], dim=1), state), dim=1)
    # One matrix product instead of two rounds differently in float32.
    torch.testing.assert_close(made, expected.detach(), atol=1e-5, rtol=0)


def test_the_lstm_is_the_textbook_s():
    """Same numbers as torch.nn.LSTM with the same weights: gate order i, f, g, o."""
    torch.manual_seed(1)
    own = TRUNKS["lstm"](10, 16)
    reference = torch.nn.LSTM(10, 16)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(own.weight_ih)
        reference.weight_hh_l0.copy_(own.weight_hh)
        reference.bias_ih_l0.copy_(own.bias)
        reference.bias_hh_l0.zero_()
    x_TBF = torch.randn(30, 4, 10)
    hidden, _ = own(x_TBF, torch.zeros(4, 32))
    # tanh is computed by way of a sigmoid, which differs in the last bits.
    torch.testing.assert_close(hidden, reference(x_TBF)[0], atol=1e-5, rtol=0)
