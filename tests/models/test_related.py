"""What follows what among categories: counted right, and never of the user who learns from it."""

from __future__ import annotations

import numpy as np
import pytest

from models.columns import blank_columns
from models.related import MASS, PARTS, lifts_without_own, related_categories
from models.vocabulary import CategoryVocabulary, code_of

VOCABULARY = CategoryVocabulary(("table", "chair", "lamp"))
TABLE, CHAIR, LAMP = 1, 2, 3


def visits(*users: str):
    """Columns of users whose categories are told by their initials; x is unseen, a dot has no category."""
    names = {"t": "table", "c": "chair", "l": "lamp", "x": "boat"}
    columns = blank_columns(sum(map(len, users)), 3)
    columns["row"][:] = np.repeat(np.arange(len(users)), [len(user) for user in users])
    columns["category"][:] = [0 if letter == "." else code_of(names[letter]) for letter in "".join(users)]
    return columns


def test_shares_are_those_of_the_events():
    """Each category counts one more than it was seen, so that none is impossible."""
    related = related_categories(visits("ttcx", "t."), VOCABULARY)
    assert np.exp(related.log_share) == pytest.approx(np.array([2, 4, 2, 1]) / 9)


def test_a_lift_is_how_much_likelier_a_category_is_after_another():
    """Steps from table to chair lift the chair, and nothing after the lamp, of which nobody knows anything."""
    related = related_categories(visits("tctc", "tc"), VOCABULARY)
    share = np.exp(related.log_share)
    lift = np.exp(related.log_lift)
    assert lift[TABLE, CHAIR] == pytest.approx((3 / share[CHAIR] + MASS) / (3 + MASS))
    assert lift[TABLE, LAMP] == pytest.approx(MASS / (3 + MASS))
    assert lift[LAMP] == pytest.approx(1.0)
    assert lift[0] == pytest.approx(1.0)


@pytest.mark.parametrize("other", ["tttt", "t.c", "t", ".", "x"])
def test_only_steps_to_another_category_count(other):
    """Staying, an event without category between, and the border between users are no steps."""
    related = related_categories(visits("t", other, "c"), VOCABULARY)
    assert related.log_lift[TABLE] == pytest.approx(0.0)


def test_nobody_learns_from_a_table_that_holds_the_own_steps():
    """The table of a user's part is what the others make of it."""
    users = ["tc", "tl", "ct", "lc", "cl", "tctctc"]
    lifts = lifts_without_own(visits(*users), VOCABULARY)
    assert lifts.shape == (PARTS, 4, 4)
    others = related_categories(visits(*users[1:5]), VOCABULARY)
    whole = related_categories(visits(*users), VOCABULARY)
    # Rows 0 and 5 share a part: without them nobody goes from table to chair.
    assert others.log_lift[TABLE, CHAIR] < 0 < whole.log_lift[TABLE, CHAIR]
    assert lifts[0][TABLE, CHAIR] < 0
    assert lifts[1][TABLE, CHAIR] == pytest.approx(
        np.log((4 / np.exp(whole.log_share[CHAIR]) + MASS) / (4 + MASS)), rel=1e-5
    )
