"""Laws of codes and vocabularies."""

from __future__ import annotations

import numpy as np
import pytest

from models.vocabulary import DEFAULT_ACTIONS, ActionVocabulary, CategoryVocabulary, code_of, event_hash


def test_codes_never_change():
    """State rows hold codes: another hash would break every row ever written."""
    assert (code_of("4869428"), code_of("café"), code_of("")) == (851795229, 4070389375, 953390274)
    assert event_hash(b"e9") == 1481430285077053701


def test_unknown_actions_are_other():
    """``other`` is the last code."""
    actions = ActionVocabulary(DEFAULT_ACTIONS)
    assert len(actions) == 11
    assert actions.names[actions.code("view")] == "view"
    assert actions.code("levitate") == actions.code("other") == 10


@pytest.mark.parametrize("actions", [(), ("a", "a"), ("a", "other"), tuple(map(str, range(65)))])
def test_vocabularies_that_contradict_themselves_are_refused(actions):
    """No names, a name twice, ``other`` itself, or over 64."""
    with pytest.raises(ValueError, match="actions must be 1 to 64 different names"):
        ActionVocabulary(actions)


@pytest.mark.parametrize("count", [0, 1, 60, 2000])
def test_index_finds_every_name_and_nothing_else(count):
    """Each name has its own index; missing and unseen codes have 0, whatever their shape."""
    vocabulary = CategoryVocabulary([f"c{number}" for number in range(count)])
    assert vocabulary.index_of(vocabulary.codes).tolist() == list(range(1, count + 1))
    others = np.array([[0, code_of("elsewhere")], [code_of("nowhere"), 0xFFFFFFFF]], np.uint32)
    assert not vocabulary.index_of(others).any()
    everything = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    expected = np.isin(everything, vocabulary.codes)
    np.testing.assert_array_equal(vocabulary.index_of(everything) > 0, expected)
