"""Laws of the control records and of what they decide."""

from __future__ import annotations

import json

import jsonschema
import pytest

from stream.activation import Activation, decode, familiarity, newest_first, parse_label, refusal
from stream.errors import ConfigurationError
from stream.outputs import load_schema

MANIFEST = {
    "name": "shop",
    "version": "2",
    "features": [{"name": "action"}],
    "weights": {"sha256": "ab" * 32},
}


def asked(version: str, time_ms: int = 1, name: str = "shop") -> Activation:
    return Activation(name, version, "ab" * 32, "/srv/models", time_ms, "mary")


def test_a_record_is_read_as_it_was_written_and_is_of_its_schema():
    """What the command writes is what the workers read."""
    record = asked("7")
    assert decode(record.encode()) == record
    jsonschema.validate(json.loads(record.encode()), load_schema("foreclick.control"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"[]",
        b"7",
        b'{"schema": "foreclick.control.v2"}',
        asked("7").encode().replace(b"activate", b"paint"),
        asked("7").encode().replace(b"ab" * 32, b"abc"),
        asked("7").encode().replace(b'"7"', b'"../../etc"'),
        asked("7").encode().replace(b'"shop"', b'".."'),
        asked("7").encode().replace(b'"/srv/models"', b"4"),
    ],
)
def test_what_is_no_activation_is_passed_over(value):
    """Others may write to the topic; nothing in it stops a worker, and no name leads out of the model store."""
    assert decode(value) is None


def test_the_newest_activation_of_each_version_stands_and_the_newest_of_all_is_first():
    """Going back is activating the older version again; the one before it is what a refusal falls back to."""
    records = [asked("1").encode(), asked("2").encode(), None, b"noise", asked("1", 9).encode()]
    assert newest_first(records) == [asked("1", 9), asked("2")]
    assert newest_first([]) == []


def test_compaction_does_not_change_the_order():
    """A compacted topic keeps the last record of each key, and those are all that counts."""
    records = [asked("1"), asked("2"), asked("3"), asked("2", 5), asked("1", 6)]
    last = {record.key: record for record in records}
    compacted = [record for record in records if last[record.key] is record]
    assert newest_first(record.encode() for record in compacted) == newest_first(
        record.encode() for record in records
    )


def test_the_workers_own_model_store_wins_over_the_one_that_was_seen(tmp_path):
    """Machines mount the store in different places."""
    assert str(asked("7").folder()) == "/srv/models/shop/7"
    assert asked("7").folder(tmp_path) == tmp_path / "shop" / "7"


@pytest.mark.parametrize("text", ["shop", "/7", "shop/", "shop/7/8", "../7", "shop/..", "a b/7", ""])
def test_a_label_is_a_name_and_a_version(text):
    """Anything else is refused with the command that lists what there is."""
    with pytest.raises(ConfigurationError, match="foreclick models list"):
        parse_label(text)
    assert parse_label("shop-lstm/7.b_2") == ("shop-lstm", "7.b_2")


def test_other_weights_under_the_same_name_are_refused():
    """The hash that was checked is the hash that is served."""
    assert refusal(MANIFEST, "ab" * 32) is None
    assert "another model under the same name" in str(refusal(MANIFEST, "cd" * 32))


def test_what_a_window_does_not_hold_is_refused():
    """States are rebuilt from windows, so a model that reads more cannot take over."""
    assert refusal(MANIFEST) is None
    extra = {**MANIFEST, "features": [{"name": "action"}, {"name": "extra.scroll"}]}
    assert "declares extra.scroll, which the window" in str(refusal(extra))


def test_a_model_of_another_shop_is_recognised_by_its_actions():
    """Half of the input's actions must be known; an empty input says nothing."""
    known = familiarity(["tap"] * 3 + ["view"], ["a", None, "b", "a"], ["view", "other"], ["a"])
    assert (known.events, known.known_actions, known.unknown_actions) == (4, 0.25, ("tap",))
    assert known.known_categories == pytest.approx(2 / 3)
    assert "only 25 % of 4 events" in str(known.refusal)
    assert "tap" in str(known.refusal)
    assert familiarity(["tap", "view"], [], ["view"], []).refusal is None
    assert familiarity([], [], ["view"], []).refusal is None
