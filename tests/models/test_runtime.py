"""Laws of the step engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.columns import WINDOW, take
from models.errors import ModelError, NotFinite
from models.features import inputs
from models.heads import SLOTS
from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from models.vocabulary import code_of
from tests.models import synthetic
from tests.models.micro_batches import Shop, assert_same_bits, by_event, in_order_of_time


@pytest.fixture(scope="module")
def whole(engine, columns) -> dict[str, np.ndarray]:
    """All events in one micro-batch."""
    order = in_order_of_time(columns)
    return by_event([(order, Shop(engine, columns).step(order))], len(order))


@pytest.mark.parametrize("size", [1, 7, 64, 130, 500])
def test_splitting_a_batch_changes_no_bit(engine, columns, whole, size):
    """States and scores are the same however the events are cut into micro-batches."""
    order, shop = in_order_of_time(columns), Shop(engine, columns)
    if size == 1:  # the first users alone are enough for the slowest cut
        order = order[columns["row"][order] < 9]
    parts = [(order[at : at + size], shop.step(order[at : at + size])) for at in range(0, len(order), size)]
    got = by_event(parts, len(columns["row"]))
    assert_same_bits({k: v[order] for k, v in got.items()}, {k: v[order] for k, v in whole.items()})


def test_order_of_rows_and_events_changes_no_bit(engine, columns, whole):
    """Shuffling users within the batch leaves each user's outputs as they were."""
    rng = np.random.default_rng(3)
    rank = rng.permutation(int(columns["row"].max()) + 1)
    order = np.lexsort((columns["wave"], rank[columns["row"]]))
    assert_same_bits(by_event([(order, Shop(engine, columns).step(order))], len(order)), whole)


def test_a_user_alone_has_the_bits_of_the_crowd(engine, columns, whole):
    """Nobody's state reaches another's: each user alone gives what the crowd gave."""
    for user in range(0, 90, 7):
        mine = np.flatnonzero(columns["row"] == user)
        alone = by_event([(mine, Shop(engine, columns).step(mine))], len(columns["row"]))
        assert_same_bits({k: v[mine] for k, v in alone.items()}, {k: v[mine] for k, v in whole.items()})


def test_merged_partitions_have_the_bits_of_separate_ones(engine, columns):
    """A micro-batch made of two partitions' events gives each what it would have had by itself."""
    left, right = (np.flatnonzero(columns["row"] % 2 == side) for side in (0, 1))
    count = len(columns["row"])
    apart = by_event([(part, Shop(engine, columns).step(part)) for part in (left, right)], count)
    both = np.concatenate([right, left])
    assert_same_bits(by_event([(both, Shop(engine, columns).step(both))], count), apart)


def test_thousands_of_rows_have_the_bits_of_one(engine):
    """Large tiles round like small ones."""
    codes = engine.artefact.categories.codes
    rows = 4096
    columns = take(synthetic.shop(1, 40, seed=8), np.zeros(rows, np.int64))
    columns["row"], columns["wave"] = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32)
    state = np.tile(
        np.random.default_rng(1).normal(size=engine.artefact.state_width).astype(np.float16), (rows, 1)
    )
    window = np.tile(np.resize(codes, WINDOW), (rows, 1))
    many = engine.step(state, window, columns)
    for name in (
        "state",
        "next_action",
        "terms",
        "top_category_probability",
        "median_gap_s",
        "anomaly_score",
    ):
        values = getattr(many, name)
        assert (values == values[:1]).all(), name


def test_stepwise_equals_full_sequence(engine, columns):
    """The carried state gives what running over the whole history gives."""
    user = int(np.bincount(columns["row"]).argmax())
    mine = np.flatnonzero(columns["row"] == user)
    network = engine.prepared.network
    S = network.trunk.state_width
    with torch.inference_mode():
        x = network.embed(inputs(take(columns, mine), engine.artefact.features))[: len(mine)]
        hidden, last = network.trunk(x[:, None], torch.zeros(1, S))
        state = torch.zeros(1, S)
        for step, row in enumerate(x):
            state = network.trunk.step(row[None], state)
            # float32 matrix products of one row and of many round differently in the last bits.
            torch.testing.assert_close(state[:, : network.trunk.hidden], hidden[step], atol=1e-5, rtol=0)
        torch.testing.assert_close(state, last, atol=1e-5, rtol=0)
    result = Shop(engine, columns).step(mine)
    # The served state is cast to float16 (11 bits of mantissa) after every event.
    np.testing.assert_allclose(result.user_vector, hidden[:, 0].numpy(), atol=5e-3)


def test_the_future_changes_nothing_before_it(engine, columns, whole):
    """Cutting off what comes later leaves every earlier output bit for bit."""
    early = columns["life_events"] <= 4
    order = in_order_of_time(columns)
    order = order[early[order]]
    got = by_event([(order, Shop(engine, columns).step(order))], len(columns["row"]))
    assert_same_bits({k: v[order] for k, v in got.items()}, {k: v[order] for k, v in whole.items()})


def test_zeros_are_a_new_user(engine, columns):
    """A first event is judged by the zero state, the same for every new user with the same event."""
    first = np.flatnonzero(columns["life_events"] == 1)
    result = Shop(engine, columns).step(first)
    probability = np.exp(-result.terms[:, 0])
    for action in np.unique(columns["action"][first]):
        assert np.unique(probability[columns["action"][first] == action]).size == 1
    assert (result.terms[:, 2] == 0).all()


def test_terms_are_minus_the_log_of_the_earlier_prediction(engine, columns):
    """Surprise is the sum of exact terms, each read off the prediction that the event before it got."""
    order, shop = in_order_of_time(columns), Shop(engine, columns)
    result = by_event([(order, shop.step(order))], len(order))
    np.testing.assert_array_equal(result["surprisal_nats"], result["terms"].sum(axis=1, dtype=np.float32))
    later = np.flatnonzero(columns["life_events"] > 1)
    before = result["next_action"][later - 1, columns["action"][later]]
    # exp and log in float32 lose a few units of the last place.
    np.testing.assert_allclose(result["terms"][later, 0], -np.log(before), rtol=1e-5, atol=1e-5)
    checked = 0
    for event in later:
        wanted = columns["category"][event]
        place = np.flatnonzero(result["top_category"][event - 1] == wanted)
        if wanted == 0:
            assert result["terms"][event, 1] == 0
        elif len(place) and wanted in engine.artefact.categories.codes:
            probability = result["top_category_probability"][event - 1, place[0]]
            # The listed probability has 6 decimals.
            assert np.exp(-result["terms"][event, 1]) == pytest.approx(probability, abs=2e-6)
            checked += 1
    assert checked > 100


def test_gap_term_is_the_density_whose_tail_is_churn(engine, columns):
    """The gap's density integrates to what the survival function says."""
    order = in_order_of_time(columns)
    shop = Shop(engine, columns)
    shop.step(order)
    with torch.inference_mode():
        small = engine.prepared.network.heads.small(
            torch.from_numpy(shop.state[:64, : engine.prepared.read_width]).float()
        )
        nothing = torch.zeros(64, SLOTS, dtype=torch.bool)
        gap = engine.prepared.network.heads.read(small, nothing, nothing[:, 0]).gap
        edges = torch.linspace(1e-4, 25, 20_000)
        density = torch.stack(
            [torch.exp(gap.log_likelihood(torch.full((64,), float(y)))) for y in edges[::10]]
        )
        integral = torch.trapezoid(density, edges[::10], dim=0)
        at_floor = torch.exp(gap.log_likelihood(torch.zeros(64)))
        torch.testing.assert_close(integral + at_floor, torch.ones(64), atol=2e-3, rtol=0)
        for within in (30.0, 9.0, 4.0):
            median = gap.median(within)
            share = gap.survival(median) - gap.survival(within)
            whole_share = 1 - gap.survival(within)
            # Ten halvings of the span of the components leave this much.
            assert ((share - 0.5 * whole_share).abs() < 5e-3).logical_or(median == 0).all()
            assert (median <= within).all()


def test_top_categories_descend_and_sum_to_at_most_one(engine, columns, whole):
    """The list is sorted, has no category twice, and its probabilities are a part of 1."""
    probability, code = whole["top_category_probability"], whole["top_category"]
    assert (np.diff(probability, axis=1) <= 0).all()
    assert (probability.sum(axis=1) <= 1 + 20 * 5e-7).all()  # 20 numbers rounded to 6 decimals
    assert ((code == 0) == (probability == 0)).all()
    for row in code:
        assert len(set(row[row > 0])) == (row > 0).sum()


def test_the_pointer_reaches_categories_outside_the_vocabulary(engine, columns, whole):
    """A category that training never saw is named once the user has looked at it."""
    rare = [code_of(name) for name in synthetic.RARE]
    assert not set(rare) & set(engine.artefact.categories.codes.tolist())
    looked_at = np.isin(columns["window_category"], rare).any(axis=1)
    assert looked_at.sum() > 50
    listed = np.isin(whole["top_category"], rare).any(axis=1)
    assert listed[looked_at].all()
    assert not listed[~looked_at].any()


def test_a_batch_without_events_changes_nothing(engine):
    """An empty micro-batch is a valid one."""
    empty = take(synthetic.shop(2, 4), np.zeros(0, np.int64))
    state = np.ones((3, engine.artefact.state_width), np.float16)
    result = engine.step(state, np.zeros((3, WINDOW), np.uint32), empty)
    np.testing.assert_array_equal(result.state, state)
    assert result.next_action.shape == (0, len(engine.artefact.actions))


def test_rows_without_events_keep_their_state(engine, columns):
    """A row that only a timer touched leaves as it came."""
    _users, before, part = synthetic.micro_batch(columns, np.flatnonzero(columns["row"] == 4))
    state = np.full((3, engine.artefact.state_width), 0.25, np.float16)
    part["row"][:] = 1
    result = engine.step(state, np.repeat(before, 3, axis=0), part)
    np.testing.assert_array_equal(result.state[[0, 2]], state[[0, 2]])
    assert (result.state[1] != state[1]).any()


def test_rebuilt_states_have_the_bits_of_steps(engine, columns):
    """From nothing through the same events, with or without answers."""
    rows = int(columns["row"].max()) + 1
    blank, empty = np.zeros((rows, engine.artefact.state_width), np.float16), np.zeros((rows, 32), np.uint32)
    rebuilt = engine.rebuild(rows, columns)
    assert np.array_equal(rebuilt, engine.step(blank, empty, columns).state)
    assert rebuilt.any()
    nothing = {name: values[:0] for name, values in columns.items()}
    assert not engine.rebuild(2, nothing).any()


def test_states_say_of_gaps_what_their_events_said(engine, columns):
    """Bit for bit, whoever is asked beside: a deadline may be found later than its event."""
    rows = int(columns["row"].max()) + 1
    blank, empty = np.zeros((rows, engine.artefact.state_width), np.float16), np.zeros((rows, 32), np.uint32)
    result = engine.step(blank, empty, columns)
    last = np.full(rows, -1)
    last[columns["row"]] = np.arange(len(columns["row"]))
    said = result.gap_mixture[last].parameters()
    assert engine.gaps(result.state).parameters().tobytes() == said.tobytes()
    assert engine.gaps(result.state[3:5]).parameters().tobytes() == said[:, :, 3:5].tobytes()


def test_arguments_are_left_unchanged(engine, columns):
    """``step`` is a pure function of arrays."""
    users, before, part = synthetic.micro_batch(columns, in_order_of_time(columns))
    state = np.random.default_rng(2).normal(size=(len(users), engine.artefact.state_width)).astype(np.float16)
    kept = [state.copy(), before.copy(), {name: values.copy() for name, values in part.items()}]
    engine.step(state, before, part)
    np.testing.assert_array_equal(state, kept[0])
    np.testing.assert_array_equal(before, kept[1])
    for name, values in part.items():
        np.testing.assert_array_equal(values, kept[2][name])


def test_a_state_that_is_not_finite_stops_the_step(engine, columns):
    """NaN is a broken invariant that names the event, never a row."""
    _users, before, part = synthetic.micro_batch(columns, np.flatnonzero(columns["row"] == 4))
    state = np.full((1, engine.artefact.state_width), np.nan, np.float16)
    with pytest.raises(NotFinite, match="untrained/1 made a state that is not finite at event 0"):
        engine.step(state, before, part)


def test_huge_states_are_clamped_to_what_float16_holds(engine, columns):
    """A cell state beyond 65504 is stored as 65504, not as infinity."""
    _users, before, part = synthetic.micro_batch(columns, np.flatnonzero(columns["row"] == 4))
    state = np.full((1, engine.artefact.state_width), 65504, np.float16)
    assert np.isfinite(engine.step(state, before, part).state).all()


def test_too_many_categories_are_refused_by_name(tmp_path):
    """The engine ranks 2,014 categories at most and says so."""
    from models.errors import ForeclickError

    folder = untrained(tmp_path, categories=tuple(f"c{i}" for i in range(300)))
    artefact = load_artefact(folder)
    big = replace(artefact, categories=type(artefact.categories)(tuple(f"c{i}" for i in range(2100))))
    with pytest.raises(ForeclickError, match="2100 categories"):
        StepEngine(big, device="cpu")


def test_columns_of_another_vocabulary_are_refused(engine):
    """Counts of other actions than the model's are never read as its own."""
    columns = synthetic.columns_of(
        [synthetic.events_of(1, 3)], actions=("view", "cart", "purchase", "search")
    )
    _users, before, part = synthetic.micro_batch(columns, np.arange(3))
    state = np.zeros((1, engine.artefact.state_width), np.float16)
    with pytest.raises(ModelError, match="count 5 actions, the model knows 4"):
        engine.step(state, before, part)
