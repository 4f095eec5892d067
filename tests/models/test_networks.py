"""Laws that every trunk keeps, alone and in the engine that serves it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.columns import WINDOW, take
from models.errors import ArtefactError, NotFinite
from models.evaluation import run
from models.features import inputs, numbers_of, raw_inputs
from models.network import TRUNKS, Architecture, Network
from models.networks.trunk import MOST_STATE_BYTES
from models.registry import load_artefact, save_artefact, untrained
from models.runtime import StepEngine
from models.training import train
from models.training_log import TrainingLog
from models.vocabulary import ActionVocabulary, code_of
from tests.models import synthetic
from tests.models.micro_batches import Shop, assert_same_bits, by_event, in_order_of_time

F, H, T, B = 10, 16, 80, 5
KINDS = list(TRUNKS)
# Longer than any trunk's window, so that the oldest entries have been forgotten.
assert T > 2 * WINDOW


@pytest.fixture(params=KINDS)
def trunk(request):
    torch.manual_seed(3)
    return TRUNKS[request.param](F, H)


@pytest.fixture(scope="module", params=KINDS)
def artefact(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    actions, categories = synthetic.ACTIONS, synthetic.CATEGORIES
    return load_artefact(untrained(root, architecture=request.param, actions=actions, categories=categories))


@pytest.fixture(scope="module")
def engine(artefact):
    return StepEngine(artefact, device="cpu")


def test_stepwise_equals_full_sequence(trunk):
    """``step`` is one time step of ``forward``, far beyond what a window holds."""
    x_TBF = torch.randn(T, B, F)
    hidden_TBH, last = trunk(x_TBF, torch.zeros(B, trunk.state_width))
    state = torch.zeros(B, trunk.state_width)
    for x_BF, hidden_BH in zip(x_TBF, hidden_TBH, strict=True):
        state = trunk.step(x_BF, state)
        # Matrix products of other row counts round differently in float32.
        torch.testing.assert_close(state[:, :H], hidden_BH, atol=1e-5, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cuts", [(8,), (1, 2, 40), (31, 32, 33), (64,)], ids=str)
def test_a_sequence_in_chunks_equals_the_whole(trunk, cuts):
    """The carried state is all that a later chunk needs, whether the chunk is shorter or longer than a window."""
    x_TBF = torch.randn(T, B, F)
    whole, last = trunk(x_TBF, torch.zeros(B, trunk.state_width))
    state, parts = torch.zeros(B, trunk.state_width), []
    for chunk in torch.tensor_split(x_TBF, cuts):
        hidden, state = trunk(chunk, state)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=0)


def test_the_future_changes_nothing_before_it(trunk):
    """Hidden states depend on earlier inputs only, bit for bit."""
    x_TBF = torch.randn(T, B, F)
    other = x_TBF.clone()
    other[47:] += 1
    before, _ = trunk(x_TBF, torch.zeros(B, trunk.state_width))
    after, _ = trunk(other, torch.zeros(B, trunk.state_width))
    assert torch.equal(before[:47], after[:47])
    assert (before[47:] != after[47:]).any(dim=2).all()


def test_arguments_are_left_unchanged(trunk):
    """A chunk's inputs and state can be used again."""
    x_TBF, state = torch.randn(T, B, F), torch.randn(B, trunk.state_width)
    kept = x_TBF.clone(), state.clone()
    trunk(x_TBF, state)
    assert torch.equal(x_TBF, kept[0])
    assert torch.equal(state, kept[1])


def test_the_state_has_its_declared_size_and_begins_with_what_heads_read(trunk):
    """S numbers a user, the first H of them the hidden vector."""
    hidden_TBH, state = trunk(torch.randn(3, B, F), torch.zeros(B, trunk.state_width))
    assert state.shape == (B, trunk.state_width)
    assert torch.equal(state[:, :H], hidden_TBH[-1])


def test_every_weight_is_learned_from(trunk):
    """The loss of a later chunk reaches every parameter: none is there for nothing."""
    _, state = trunk(torch.randn(T, B, F), torch.zeros(B, trunk.state_width))
    hidden, _ = trunk(torch.randn(T, B, F), state.detach())
    (hidden * torch.randn(T, B, H)).sum().backward()
    for name, weight in trunk.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("kind", "bytes_a_user"),
    [("linear", 128), ("mlp", 1120), ("gru", 128), ("lstm", 256), ("transformer", 3104)],
)
def test_a_users_state_has_the_documented_bytes(kind, bytes_a_user):
    """Sizes as the docstrings say them, for 64 units in float16."""
    assert 2 * TRUNKS[kind](70, 64).state_width == bytes_a_user


def test_memory_reaches_as_far_back_as_the_kind_promises():
    """An input 31 events ago moves every memory, one 32 ago only the recurrent ones; none moves the linear map."""
    reached = {}
    for kind in KINDS:
        torch.manual_seed(3)
        trunk = TRUNKS[kind](F, H)
        x_TBF = torch.randn(WINDOW + 1, 1, F)
        hidden = trunk(x_TBF, torch.zeros(1, trunk.state_width))[0][-1]
        reached[kind] = []
        for back in (0, 1, WINDOW - 1, WINDOW):
            other = x_TBF.clone()
            other[WINDOW - back] += 1
            moved = trunk(other, torch.zeros(1, trunk.state_width))[0][-1]
            reached[kind].append(not torch.equal(hidden, moved))
    assert reached == {
        "linear": [True, False, False, False],
        "mlp": [True, True, True, False],
        "gru": [True] * 4,
        "lstm": [True] * 4,
        "transformer": [True, True, True, False],
    }


def test_prepared_equals_step(trunk):
    """The weights laid out for serving compute the same step, and write it as float16."""
    prepared = trunk.prepared()
    x, old = torch.randn(64, F), torch.randn(64, trunk.state_width).half()
    expected = trunk.step(x, old.float()).detach()
    new, kept = torch.full_like(old, torch.nan), old.clone()
    with torch.inference_mode():
        made = prepared.step(torch.cat([x, torch.empty(64, prepared.room)], dim=1), old, new)
    # Half a unit in the last of float16's 11 bits, and some roundings of float32 before it.
    torch.testing.assert_close(new.float(), expected, atol=1e-5, rtol=2**-11)
    assert torch.equal(old, kept)
    assert all(part.dtype == torch.float32 for part in made)


def test_a_state_beyond_float16_is_clamped(trunk):
    """What outgrows float16 is stored as its greatest number; the next step from there is finite again."""
    prepared = trunk.prepared()
    state, new = (
        torch.full((64, trunk.state_width), 65504.0).half(),
        torch.empty(64, trunk.state_width).half(),
    )
    with torch.inference_mode():
        for size in (1e9, 1.0):
            prepared.step(size * torch.randn(64, F + prepared.room), state, new)
            assert new.isfinite().all()
            state = new.clone()


def test_a_number_that_is_not_finite_shows_in_the_last_part(trunk):
    """Whatever is broken in the state after a step can be seen in one sum."""
    prepared = trunk.prepared()
    old = torch.zeros(64, trunk.state_width).half()
    for broken in (torch.nan, torch.inf):
        x, new = torch.randn(64, F + prepared.room), torch.empty_like(old)
        x[5, 2] = broken
        with torch.inference_mode():
            last = prepared.step(x, old, new)[-1]
        if not new.isfinite().all():
            assert not last.sum().isfinite()
    x[5, 2] = torch.nan
    with torch.inference_mode():
        assert not prepared.step(x, old, new)[-1].sum().isfinite()


def test_the_recurrent_ones_are_the_textbooks():
    """Same numbers as torch.nn.LSTM and torch.nn.GRU with the same weights: the order of gates is theirs."""
    torch.manual_seed(1)
    for kind, reference in (("lstm", torch.nn.LSTM(F, H)), ("gru", torch.nn.GRU(F, H))):
        own = TRUNKS[kind](F, H)
        with torch.no_grad():
            reference.weight_ih_l0.copy_(own.weight_ih)
            reference.weight_hh_l0.copy_(own.weight_hh)
            reference.bias_ih_l0.copy_(own.bias)
            reference.bias_hh_l0.zero_()
            if kind == "gru":
                own.bias_hn.copy_(torch.randn(H))
                reference.bias_hh_l0[2 * H :] = own.bias_hn
        x_TBF = torch.randn(30, 4, F)
        hidden, _ = own(x_TBF, torch.zeros(4, own.state_width))
        # The LSTM's tanh is computed by way of a sigmoid, which differs in the last bits.
        torch.testing.assert_close(hidden, reference(x_TBF)[0], atol=1e-5, rtol=0)


def test_the_transformer_is_plain_attention():
    """One user, one event at a time, written as sums: each head weighs 32 values by its own key products."""
    torch.manual_seed(2)
    own = TRUNKS["transformer"](F, H)
    with torch.no_grad():
        own.bias_HW.normal_()
    x_TF = torch.randn(40, F)
    hidden = own(x_TF[:, None], torch.zeros(1, own.state_width))[0][:, 0]
    e, q, entry = own.parts(x_TF)
    for t in (0, 5, 31, 39):
        read = []
        for head in range(4):
            query, score, value = q[t, 16 * head : 16 * head + 16], [], []
            for back in range(31, -1, -1):
                slot = entry[t - back] if t >= back else torch.zeros(48)
                score.append(query @ slot[:16] / 4 + own.bias_HW[head, 31 - back])
                value.append(slot[16:])
            read.append(torch.softmax(torch.stack(score), dim=0) @ torch.stack(value))
        expected = own.answer(e[t], torch.cat(read))
        torch.testing.assert_close(hidden[t], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [7, 64, 500])
def test_batch_composition_changes_no_bit(engine, columns, size):
    """States and scores are the same in one micro-batch, in small ones, and with users in another order."""
    order, count = in_order_of_time(columns), len(columns["row"])
    whole = Shop(engine, columns)
    expected = by_event([(order, whole.step(order))], count)
    if size == 7:  # some users are enough for the slowest cut
        order = order[columns["row"][order] < 20]
    order = order[::-1][np.argsort(columns["wave"][order[::-1]], kind="stable")]
    shop = Shop(engine, columns)
    got = by_event(
        [(p, shop.step(p)) for p in (order[at : at + size] for at in range(0, len(order), size))], count
    )
    assert_same_bits({k: v[order] for k, v in got.items()}, {k: v[order] for k, v in expected.items()})
    users = np.unique(columns["row"][order])
    assert shop.state[users].tobytes() == whole.state[users].tobytes()


def test_a_user_among_thousands_has_the_bits_of_one_alone(engine, columns):
    """Large tiles round like small ones, wherever in them a user stands."""
    order = in_order_of_time(columns)
    shop = Shop(engine, columns)
    shop.step(order)
    user = int(np.bincount(columns["row"]).argmax())
    mine = np.flatnonzero(columns["row"] == user)[-1:]
    _, before, part = synthetic.micro_batch(columns, mine)
    alone = engine.step(shop.state[[user]], before, part)
    rows = 1500
    crowd = np.random.default_rng(4).choice(len(shop.state), rows)
    places = np.random.default_rng(5).choice(rows, 40, replace=False)
    crowd[places] = user
    latest = np.array([np.flatnonzero(columns["row"] == row)[-1] for row in range(len(shop.state))])
    _, windows, parts = synthetic.micro_batch(columns, latest)
    many = {name: values[crowd] for name, values in parts.items()}
    many["row"] = np.arange(rows, dtype=np.int32)
    result = engine.step(shop.state[crowd], windows[crowd], many)
    assert (result.state[places].view(np.uint16) == alone.state.view(np.uint16)).all()
    for name in ("next_action", "terms", "top_category_probability", "churn_probability"):
        assert (getattr(result, name)[places] == getattr(alone, name)).all(), name


def test_the_engine_serves_what_forward_computes(engine, columns):
    """Through float16 states, event by event, the engine's hidden vectors are those of the whole history."""
    user = int(np.bincount(columns["row"]).argmax())
    mine = np.flatnonzero(columns["row"] == user)
    served = Shop(engine, columns).step(mine).user_vector
    network = engine.prepared.network
    with torch.inference_mode():
        x = network.embed(inputs(take(columns, mine), engine.artefact.features))[: len(mine)]
        hidden, _ = network.trunk(x[:, None], torch.zeros(1, network.trunk.state_width))
    # A float16 of size 4 has steps of 0.004, and every one of 30 steps before was cast as well.
    np.testing.assert_allclose(served, hidden[:, 0].numpy(), atol=1e-2)


def test_the_engine_carries_the_shortcut_that_training_reads(engine, columns):
    """The first numbers of a state are linear in its last event's numbers, whatever the trunk."""
    everything = in_order_of_time(columns)
    shop = Shop(engine, columns)
    shop.step(everything)
    last = np.flatnonzero(np.append(columns["wave"][1:] == 0, True))
    network = engine.prepared.network
    with torch.inference_mode():
        x = network.embed(inputs(take(columns, last), engine.artefact.features))[: len(last)]
        logits = x @ network.shortcut_weight().t()
    carried = shop.state[columns["row"][last], : network.shortcut_width]
    # A float16 below 8 has steps of 0.004.
    np.testing.assert_allclose(carried, logits.numpy(), atol=4e-3)


def test_an_unlearned_network_says_what_the_user_s_own_counts_say(artefact, columns):
    """Before the first update the next action is a mixture of the user's shares in life and after this action."""
    spec, A = artefact.features, len(artefact.actions)
    network = Network(artefact.network.architecture)
    network.begin_from(spec)
    with torch.inference_mode():
        logits = network.embed(inputs(columns, spec)) @ network.shortcut_weight().t()
        blank = torch.zeros(len(logits), network.architecture.hidden)
        logits = network.heads.small(torch.cat([logits, blank], dim=1))[:, :A]
    raw = raw_inputs(columns, spec).x_NF
    life, after_this = (raw[:, numbers_of(name, A)] for name in ("habit", "next_habit"))
    wanted = torch.from_numpy(spec.action_share).log() + 0.5 * (life + after_this)
    torch.testing.assert_close(logits.softmax(dim=1), wanted.softmax(dim=1), atol=1e-5, rtol=0)


def test_a_saved_network_computes_the_same_bits(artefact, columns, tmp_path):
    """Save and load is the identity."""
    manifest = {**artefact.manifest, "name": "again"}
    again = load_artefact(save_artefact(tmp_path, artefact.network, manifest))
    assert again.manifest["architecture"]["kind"] == artefact.manifest["architecture"]["kind"]
    assert again.state_width == artefact.state_width
    one, other = (run(StepEngine(each, device="cpu"), columns) for each in (artefact, again))
    everything = np.arange(len(columns["row"]))
    assert_same_bits(*(by_event([(everything, each)], len(everything)) for each in (one, other)))


def test_a_damaged_weight_stops_the_step(artefact, columns):
    """No kind hides a NaN from the engine: the event is named."""
    network = copy.deepcopy(artefact.network)
    for weight in network.trunk.parameters():
        weight.data.fill_(torch.nan)
    damaged = StepEngine(replace(artefact, network=network), device="cpu")
    _users, before, part = synthetic.micro_batch(columns, np.flatnonzero(columns["row"] == 4))
    with pytest.raises(NotFinite, match="untrained/1 made a state that is not finite at event 0"):
        damaged.step(np.zeros((1, artefact.state_width), np.float16), before, part)


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_is_trained_and_loaded(kind, tmp_path):
    """The loss of users it never saw falls, and what was saved passes its own checks."""
    columns = synthetic.shop(120, 1800, seed=9)
    names = {code_of(name): name for name in synthetic.CATEGORIES + synthetic.RARE}
    users = [f"u{row}" for row in range(int(columns["row"].max()) + 1)]
    log = TrainingLog(columns, users, names, ActionVocabulary(synthetic.ACTIONS))
    made = load_artefact(train(log, tmp_path, architecture=kind, hidden=H, epochs=4))
    assert made.manifest["architecture"]["kind"] == kind
    curve = [epoch["tuning_loss"] for epoch in made.manifest["training"]["curve"]]
    assert curve[-1] < curve[0]


def test_a_state_too_wide_for_a_row_is_refused(tmp_path):
    """8,192 bytes a user is the most, and the message says both numbers."""
    widest = Network(Architecture("linear", hidden=4078)).state_width
    assert 2 * widest == MOST_STATE_BYTES
    with pytest.raises(
        ArtefactError, match=r"'linear' with 4079 hidden units carries 8,194 bytes .* for 8,192"
    ):
        untrained(tmp_path, architecture="linear", hidden=4079)


# Without a device there is nothing to compare, so there is no such law rather than one that is skipped.
if torch.cuda.is_available():

    def test_cpu_and_cuda_agree(artefact, columns):
        """60 steps on either device differ by less than 1e-3: products are summed in another order there."""
        one, other = (run(StepEngine(artefact, device=device), columns) for device in ("cpu", "cuda"))
        for name in ("next_action", "purchase_probability", "churn_probability", "terms"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-3, err_msg=name)
