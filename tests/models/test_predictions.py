"""Laws of what is measured: the engine's own numbers, told to the events that they are about."""

from __future__ import annotations

import numpy as np
import pytest

from models.columns import take
from models.evaluation import predictions, run
from models.evaluation.answers import Answers
from models.evaluation.comparison import compare_model
from models.evaluation.predictions import predictions_of
from tests.models import synthetic


def test_an_event_is_predicted_before_it(engine, columns):
    """Row n holds what was said after the same user's event before, and nothing for a first event."""
    made, result = predictions_of(engine, columns), run(engine, columns)
    later = np.flatnonzero(columns["wave"] > 0)
    assert (made.next_action[later] == result.next_action[later - 1]).all()
    assert (made.next_category[later] == result.top_category[later - 1]).all()
    assert (made.next_action[columns["wave"] == 0] == 0).all()
    assert (made.purchase == result.purchase_probability).all()


def test_the_loss_is_the_surprisal_that_serving_tells(engine, columns):
    """Minus the log of the probability of what came is the action term of the engine."""
    made, result = predictions_of(engine, columns), run(engine, columns)
    later = np.flatnonzero(columns["wave"] > 0)
    loss = -np.log(made.next_action[later, columns["action"][later]])
    np.testing.assert_allclose(loss, result.terms[later, 0], rtol=1e-5, atol=1e-6)


def test_users_at_a_time_change_no_bit(engine, columns, monkeypatch):
    """A few users a step, or all of them in one."""
    whole = predictions_of(engine, columns)
    monkeypatch.setattr(predictions, "_EVENTS_AT_ONCE", 50)
    done = []
    parts = predictions_of(engine, columns, done.append)
    for name in ("next_action", "next_category", "purchase", "gap_s", "gap_nats"):
        assert (getattr(whole, name) == getattr(parts, name)).all(), name
    assert len(done) > 5
    assert done[-1] == len(columns["row"])


def test_no_event_is_no_prediction(engine, columns):
    """Arrays of the usual shapes, without rows."""
    made = predictions_of(engine, take(columns, np.zeros(0, np.int64)))
    assert made.next_action.shape == (0, 4)
    assert made.next_category.shape == (0, 20)


def test_gaps_are_measured_where_they_are_known(columns):
    """A prediction of the true gaps is off by nothing; one of a minute more is off by a minute, in any unit."""
    truth = Answers(columns, 2).gap_s_N
    for unit_s in (1.0, 60.0):
        mae = Answers(columns, 2, unit_s).gap(np.nan_to_num(truth) + 60)[0]
        assert mae.value == pytest.approx(60 / unit_s)
        assert mae.n == int((columns["wave"] > 0).sum())


def test_purchases_are_measured_after_k_events_too(columns):
    """An oracle has area 1 after any number of events of the session."""
    answers = Answers(columns, synthetic.ACTIONS.index("purchase"))
    found = {one.metric: one for one in answers.purchase(answers.purchase_N.astype(float))}
    assert found["roc_auc"].value == 1
    assert found["roc_auc_after_3"].value == 1
    assert found["roc_auc_after_3"].n < found["roc_auc_after_1"].n


@pytest.mark.parametrize(
    ("change", "head", "why"),
    [
        ({"purchase_code": -1}, "purchase", "the model's actions hold no purchase"),
        ({"category": 0}, "next_category", "no measured event but a user's first has a category"),
        ({"action": 0}, "purchase", "no purchase follows any measured event"),
    ],
)
def test_a_head_without_labels_is_left_out_with_a_sentence(engine, columns, change, head, why):
    """The others are measured all the same."""
    changed = dict(columns)
    for name in change.keys() & columns.keys():
        changed[name] = np.full_like(columns[name], change[name])
    answers = Answers(changed, change.get("purchase_code", 2))
    comparison = compare_model("lstm", answers, predictions_of(engine, changed), None)
    assert head not in {entry["head"] for entry in comparison.entries()}
    assert len({entry["head"] for entry in comparison.entries()}) == 3
    assert any(head in note and why in note for note in comparison.notes)


def test_users_of_one_event_leave_nothing_but_sentences(engine):
    """No figure, no NaN, a reason a head."""
    lonely = synthetic.columns_of([synthetic.events_of(user, 1) for user in range(5)])
    answers = Answers(lonely, 2)
    comparison = compare_model("lstm", answers, predictions_of(engine, lonely), None)
    assert comparison.entries() == []
    assert len(comparison.notes) == 4
