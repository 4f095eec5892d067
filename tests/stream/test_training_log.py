"""Laws of folding whole files for training."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.columns import LAYOUT
from models.simulator.simulate import simulate
from models.vocabulary import DEFAULT_ACTIONS, ActionVocabulary, code_of
from stream.bundled_model import simulated_log
from stream.errors import InputFileError
from stream.files import FileRecord, LogFile
from stream.training_log import actions_of, training_log


def log_file(events: list[dict]) -> LogFile:
    records = [
        FileRecord(line, event["user_id"].encode(), json.dumps(event).encode(), event["event_time_ms"])
        for line, event in enumerate(events, 1)
    ]
    return LogFile("made up", "canonical", records)


def event(user: str, second: int, action: str = "view", **more) -> dict:
    return {"user_id": user, "event_time_ms": 1_700_000_000_000 + 1000 * second, "action": action, **more}


def test_columns_are_what_models_read():
    """Names, types and shapes of the fold are those of the models' table."""
    log = training_log([log_file([event("a", 0, category_id="x"), event("b", 1), event("a", 2)])])
    sizes = {"A": 11, "W": 32, "E": 0}
    assert log.columns.keys() == LAYOUT.keys()
    for name, (dtype, shape) in LAYOUT.items():
        assert log.columns[name].dtype == np.dtype(dtype), name
        assert log.columns[name].shape == (3, *(sizes[axis] for axis in shape)), name


def test_each_user_s_events_are_contiguous_and_in_order():
    """Rows are users in order of appearance, waves their turns."""
    log = training_log([log_file([event("a", 0), event("b", 1), event("a", 2), event("b", 3)])])
    assert log.user_ids == ["a", "b"]
    assert log.columns["row"].tolist() == [0, 0, 1, 1]
    assert log.columns["wave"].tolist() == [0, 1, 0, 1]
    assert log.columns["gap_ms"].tolist() == [-1, 2000, -1, 2000]


def test_repeats_and_lines_that_are_no_events_are_left_out():
    """Training sees what the worker would have applied."""
    twice = event("a", 0, event_id="e1")
    file = log_file([twice, twice, event("a", 1, event_id="e2")])
    file.records.append(FileRecord(4, b"a", b"{broken", None))
    assert len(training_log([file]).columns["row"]) == 2


def test_declared_extras_are_columns_and_missing_ones_are_nan():
    """In the order in which they were declared; others are left out."""
    file = log_file([event("a", 0, extra={"value": 3.5, "rank": 1}), event("a", 1), event("a", 2, extra={})])
    log = training_log([file], extras=("duration", "value"))
    assert log.extras == ("duration", "value")
    np.testing.assert_array_equal(
        log.columns["extra"], np.float32([[np.nan, 3.5], [np.nan] * 2, [np.nan] * 2])
    )


def test_category_names_are_kept_for_the_vocabulary():
    """A code can be named again."""
    log = training_log([log_file([event("a", 0, category_id="shoes"), event("a", 1)])])
    assert log.category_names == {code_of("shoes"): "shoes"}


def test_usual_actions_keep_the_usual_vocabulary_and_others_make_their_own():
    """A log with actions of its own gets a vocabulary of its own, the most frequent first."""

    class Named:
        def __init__(self, action: str):
            self.action = action

    assert actions_of([Named("cart")]).names == ActionVocabulary(DEFAULT_ACTIONS).names
    own = actions_of([Named("tap"), Named("swipe"), Named("tap"), Named("other")])
    assert own.names == ("tap", "swipe", "other")
    many = actions_of([Named(f"a{number}") for number in range(100)])
    assert len(many) == 65


def test_a_file_without_events_is_refused():
    """The file is named, and what to do."""
    with pytest.raises(InputFileError, match=r"No line of made up is an event\. Name the right --format"):
        training_log([LogFile("made up", "canonical", [FileRecord(1, b"a", b"{}", None)])])


def test_simulated_events_fold_whole():
    """Every simulated event is applied: none is late, repeated or malformed."""
    log = simulated_log(40, 1200, seed=5)
    assert len(log.columns["row"]) == 1200
    assert set(log.user_ids) == {event.user_id for event in simulate(40, 1200, 5).events}


def test_the_vocabulary_of_actions_is_of_users_below_a_share():
    """What only other users did is no name that the model may know; it becomes ``other``."""
    # crc32 modulo 100: of a 7, of b 81.
    events = [event("a", 0, "tap"), event("b", 1, "swipe"), event("a", 2, "tap"), event("b", 3, "tap")]
    log = training_log([log_file(events)], below_share=60)
    assert log.actions.names == ("tap", "other")
    assert log.columns["action"].tolist() == [0, 0, 1, 0]
    assert training_log([log_file(events)], below_share=5).actions.names == ("tap", "swipe", "other")
