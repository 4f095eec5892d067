"""Laws of labels: what is one, what it joins, and what the counts say, compared with counting everything at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isnan
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.alerts import Alert
from stream.errors import DamagedRow
from stream.events import Rejection
from stream.label_join import Tally, UserLabels, drawn, fold, fold_order, tallied
from stream.label_records import (
    ORDERS_KEY,
    Label,
    Note,
    Order,
    decode_label,
    notes_of_alert,
    packed_orders,
    seen_note,
)
from stream.outputs import load_schema

LABEL = {
    "subject": "order",
    "id": "o1",
    "user_id": "u17",
    "label": "fraud",
    "time_ms": 1511550516000,
    "by": "mary",
}


def encoded(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in (LABEL | changes).items() if value is not ...}).encode()


def decoded(record: bytes) -> Label | Note:
    user = json.loads(record)["user_id"]
    found = decode_label(user.encode(), record)
    assert isinstance(found, Label | Note), found
    return found


@pytest.mark.parametrize(
    ("reason", "key", "value"),
    [
        ("missing_key", None, encoded()),
        ("missing_key", None, None),
        ("bad_user_id", b"", None),
        ("bad_user_id", b"\xff", None),
        ("bad_user_id", b"\0src", None),
        ("bad_user_id", b"", encoded(user_id="")),
        ("bad_user_id", b"u" * 513, encoded(user_id="u" * 513)),
        ("bad_user_id", b"\0fence", encoded(user_id="\0fence")),
        ("undecodable", b"u17", b""),
        ("undecodable", b"u17", b"\xff"),
        ("undecodable", b"u17", b"[" * 10_000),
        ("undecodable", b"u17", b'{"subject": NaN}'),
        ("wrong_type", b"u17", b"[]"),
        ("wrong_type", b"u17", b"17"),
        ("wrong_type", b"u17", encoded(subject="shop")),
        ("wrong_type", b"u17", encoded(label="maybe")),
        ("wrong_type", b"u17", encoded(time_ms="now")),
        ("wrong_type", b"u17", encoded(time_ms=0)),
        ("wrong_type", b"u17", encoded(time_ms=2**53)),
        ("wrong_type", b"u17", encoded(time_ms=1.5)),
        ("wrong_type", b"u17", encoded(id="")),
        ("wrong_type", b"u17", encoded(id="o" * 513)),
        ("wrong_type", b"u17", encoded(comment="and more")),
        ("missing_field", b"u17", encoded(by=...)),
        ("wrong_type", b"u17", encoded(note="seen")),
        ("undecodable", ORDERS_KEY, b"\xff"),
        ("undecodable", ORDERS_KEY, encoded()),
        ("undecodable", ORDERS_KEY, msgspec.msgpack.encode([["", "o1", 5]])),
        ("bad_user_id", ORDERS_KEY, msgspec.msgpack.encode([["\0n", "o1", 5]])),
        ("bad_user_id", ORDERS_KEY, None),
        ("missing_field", b"u17", b"{}"),
        ("too_large", b"u17", encoded(by="m" * 70_000)),
        ("key_mismatch", b"u18", encoded()),
        ("contradictory_label", b"u17", encoded(label="churned")),
        ("contradictory_label", b"u17", encoded(subject="user", id="u18")),
    ],
)
def test_what_is_no_label_has_a_reason(reason: str, key: bytes | None, value: bytes | None) -> None:
    """Strict: also a field too many."""
    found = decode_label(key, value)
    assert isinstance(found, Rejection)
    assert found.reason == reason


@settings(deadline=None)
@given(st.one_of(st.none(), st.binary(max_size=40)), st.one_of(st.none(), st.binary(max_size=200)))
def test_no_bytes_stop_the_decoder(key: bytes | None, value: bytes | None) -> None:
    """Whatever stands in the topic is a label, a note, a tombstone or a rejection."""
    assert decode_label(key, value) is None or isinstance(decode_label(key, value), Rejection)
    assert isinstance(decode_label(ORDERS_KEY, value or b""), list | Rejection)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "subject": st.sampled_from(["order", "user", "event"]),
            "id": st.text(min_size=1, max_size=300),
            "user_id": st.text(min_size=1, max_size=128),
            "label": st.sampled_from(["fraud", "genuine", "churned", "stayed"]),
            "time_ms": st.integers(-5, 2**53 + 5),
            "by": st.text(max_size=20),
        }
    )
)
def test_what_the_decoder_takes_fits_the_schema(label: dict[str, Any]) -> None:
    """Topic and schema promise the same."""
    if isinstance(
        decode_label(label["user_id"].encode("utf-8", "replace"), json.dumps(label).encode()), Label
    ):
        jsonschema.validate(label, load_schema("labels"))


def test_a_tombstone_erases_and_hostile_ids_are_ids() -> None:
    """A null value is the wish to be forgotten; 512 bytes, escapes and markup make no id worse."""
    assert decode_label(b"u17", None) is None
    for user in ("ü" * 256, "u\x1b[2J\n", "<script>", "\u202e", "a/b"):
        assert isinstance(decode_label(user.encode(), encoded(user_id=user, id=user)), Label)


# ---- notes


def alert(kind: str = "order_brushing", **changes: Any) -> Alert:
    evidence = [
        {"order_id": "o1", "user_id": "u1", "event_time_ms": 1, "source": {}},
        {"order_id": "o2", "user_id": "u2", "event_time_ms": 2, "source": {}},
        {"event_id": "e3", "user_id": "u2", "event_time_ms": 3, "source": {}},
        {"order_id": "o" * 600, "user_id": "u2", "event_time_ms": 4, "source": {}},
        {"event_time_ms": 5},
    ]
    made: dict[str, Any] = {
        "id": "a1",
        "kind": kind,
        "subject_type": "shop",
        "subject": "s1",
        "score": 0.8,
        "severity": "medium",
        "event_time_ms": 1_700_000_000_000,
        "reasons": [],
        "evidence": evidence,
        "members": ["u1", "u3"],
    }
    return Alert(**made | changes)


def test_an_alert_flags_its_members_and_the_orders_and_events_of_its_evidence() -> None:
    """A note a user, under the user's key; ids that no label can have are left out."""
    notes = {key.decode(): decoded(value) for key, value in notes_of_alert(alert())}
    assert {user: note.subjects for user, note in notes.items() if isinstance(note, Note)} == {
        "u1": [("user", "u1"), ("order", "o1")],
        "u3": [("user", "u3")],
        "u2": [("order", "o2"), ("event", "e3")],
    }


def test_orders_are_packed_and_come_back_in_their_order() -> None:
    """At most 256 in a record, under a key that no user has; hostile ids as they are."""
    made = [Order("u\x1b[2J" + "ü" * number, f"o{number}", 5 + number) for number in range(250)] * 2
    values = packed_orders(made)
    found = [each for each in (decode_label(ORDERS_KEY, value) for value in values) if isinstance(each, list)]
    assert [len(each) for each in found] == [256, 244]
    assert [order for each in found for order in each] == made
    assert packed_orders([]) == []


def test_a_churn_alert_flags_its_user_and_a_return_nobody() -> None:
    """The last event of a silent user is no churned event."""
    about = alert("churn.expected", subject_type="user", subject="u2", members=[])
    ((key, value),) = notes_of_alert(about)
    note = decoded(value)
    assert isinstance(note, Note)
    assert (key, note.subjects) == (b"u2", [("user", "u2")])
    assert notes_of_alert(alert("churn.returned", subject_type="user", subject="u2")) == []


# ---- the join


class Join:
    """Users' rows as a stage keeps them: through bytes between any two records."""

    def __init__(self, audit_rate: float = 0.0):
        self.rows: dict[str, bytes] = {}
        self.tally_row: bytes | None = None
        self.audit_rate = audit_rate
        self.audited: list[tuple[str, str]] = []
        self.rejected: list[Rejection] = []

    @property
    def tally(self) -> Tally:
        return Tally.of_row(self.tally_row)

    def take(self, record: Label | Note | Order) -> str | None:
        known, tally = UserLabels.of_row(self.rows.get(record.user_id)), self.tally
        outcome, rejection = None, None
        if isinstance(record, Order):
            audited = fold_order(known, tally, record, self.audit_rate)
        else:
            outcome, rejection, audited = fold(known, tally, record, self.audit_rate)
        self.audited += audited
        if rejection is not None:
            self.rejected.append(rejection)
            return None
        self.rows[record.user_id], self.tally_row = known.row(), tally.row()
        return outcome


def ordered(order: str, user: str = "u1") -> Order:
    return Order(user, order, 5)


def flagged(order: str, score: float = 0.8, kind: str = "rates", user: str = "u1") -> Note:
    return Note("alert", user, 5, [("order", order)], kind, score)


def label(order: str, said: str, at_ms: int = 9, user: str = "u1", subject: str = "order") -> Label:
    found = decoded(encoded(subject=subject, id=order, label=said, time_ms=at_ms, user_id=user))
    assert isinstance(found, Label)
    return found


def test_a_label_for_an_unknown_order_is_rejected_with_its_reason() -> None:
    """Never a silent skip; the reason names the order, and the counts stay as they were."""
    join = Join()
    join.take(ordered("o1"))
    assert join.take(label("o9", "fraud")) is None
    assert join.take(label("u2", "fraud", user="u2", subject="user")) is None
    assert join.take(label("e1", "fraud", subject="event")) is None
    assert [each.reason for each in join.rejected] == ["unknown_subject"] * 3
    assert "'o9' of user 'u1' was never made" in join.rejected[0].message
    assert "'u2' has ordered nothing" in join.rejected[1].message
    assert join.tally.labels == {}


@pytest.mark.parametrize("first", ["flag", "label"])
def test_a_label_joins_whichever_comes_first(first: str) -> None:
    """An alert of an hour's window comes after the label of a quick analyst."""
    join = Join()
    join.take(ordered("o1"))
    steps = [flagged("o1"), label("o1", "fraud")]
    outcomes = [join.take(each) for each in (steps if first == "flag" else steps[::-1])]
    assert outcomes == ([None, "joined"] if first == "flag" else ["waiting", None])
    assert join.tally.precision("rates") == 1.0


def test_the_newest_label_wins() -> None:
    """A correction replaces; an older word that comes late, and the same word again, change nothing."""
    join = Join()
    join.take(flagged("o1"))
    assert join.take(label("o1", "fraud", 10)) == "joined"
    assert join.take(label("o1", "genuine", 9)) == "older"
    assert join.tally.precision("rates") == 1.0
    assert join.take(label("o1", "genuine", 11)) == "joined"
    assert join.take(label("o1", "genuine", 11)) == "joined"
    assert join.tally.precision("rates") == 0.0


def test_precision_is_unknown_before_the_first_label() -> None:
    """NaN, not zero and not one."""
    join = Join()
    join.take(flagged("o1"))
    assert isnan(join.tally.precision("rates"))
    assert join.tally.kinds == ["rates"]


def test_churn_is_judged_by_labels_of_churn() -> None:
    """That a user is a fraud says nothing about a silence."""
    join = Join()
    join.take(Note("alert", "u1", 5, [("user", "u1")], "churn.expected", 0.6))
    join.take(label("u1", "fraud", 6, subject="user"))
    assert isnan(join.tally.precision("churn.expected"))
    join.take(label("u1", "churned", 7, subject="user"))
    assert join.tally.precision("churn.expected") == 1.0


def test_recall_is_unknown_before_one_audit_has_a_label() -> None:
    """What was flagged cannot say what was missed."""
    join = Join(audit_rate=0.5)
    for number in range(400):
        join.take(ordered(f"o{number}", f"u{number}"))
    for number in range(100):
        join.take(flagged(f"x{number}", user=f"x{number}"))
        join.take(label(f"x{number}", "fraud" if number < 80 else "genuine", user=f"x{number}"))
    assert isnan(join.tally.recall("rates", "order"))
    sampled = [subject for subject_type, subject in join.audited if subject_type == "order"]
    for place, order in enumerate(sampled):
        join.take(label(order, "fraud" if place % 10 == 0 else "genuine", user="u" + order[1:]))
    missed = sum(place % 10 == 0 for place in range(len(sampled))) / 0.5
    assert join.tally.recall("rates", "order") == pytest.approx(80 / (80 + missed))
    assert isnan(join.tally.recall("rates", "user"))


def test_recall_is_unknown_of_a_detector_without_labels_and_of_churn() -> None:
    """Not zero: nobody has looked at what it flagged; and the audit is asked for fraud, not for silence."""
    join = Join(audit_rate=1.0)
    for number, said in enumerate(["fraud", "fraud", "genuine", "genuine"]):
        join.take(ordered(f"o{number}"))
        join.take(label(f"o{number}", said))
    assert join.tally.recall("rates", "order") == 0.0
    join.take(flagged("o0"))
    join.take(flagged("x1", kind="brushing", user="u2"))
    assert join.tally.recall("rates", "order") == pytest.approx(1 / (2 + 1))
    assert isnan(join.tally.recall("brushing", "order"))
    join.take(Note("alert", "u1", 5, [("user", "u1")], "churn.expected", 0.6))
    join.take(label("u1", "churned", 7, subject="user"))
    join.take(Note("seen", "u3", 5))
    join.take(label("u3", "fraud", 7, user="u3", subject="user"))
    assert isnan(join.tally.recall("churn.expected", "user"))


def test_the_sample_is_a_property_of_the_id() -> None:
    """The same after a restart and on another worker; about as large as asked; nested by rate."""
    ids = [f"o{number}" for number in range(20_000)]
    sample = {each for each in ids if drawn("order", each, 0.01)}
    assert 140 <= len(sample) <= 260
    assert sample <= {each for each in ids if drawn("order", each, 0.02)}
    assert not any(drawn("order", each, 0.0) for each in ids)
    assert all(drawn("order", each, 1.0) for each in ids)
    assert sample != {each for each in ids if drawn("user", each, 0.01)}


def test_flagged_subjects_are_not_audited_and_audits_that_are_flagged_later_leave_the_sample() -> None:
    """The sample stands for those whom nothing flagged."""
    join = Join(audit_rate=1.0)
    join.take(flagged("o1"))
    join.take(ordered("o1"))
    assert join.audited == [("user", "u1")]
    join.take(ordered("o2"))
    join.take(ordered("o2"))
    assert join.audited == [("user", "u1"), ("order", "o2")]
    assert join.tally.audits["order"].drawn == 1
    join.take(flagged("o2"))
    assert join.tally.audits["order"].drawn == 0
    assert join.tally.audits["user"].drawn == 1
    join = Join(audit_rate=1.0)
    seen = decoded(seen_note("u9", 5))
    join.take(seen)
    join.take(seen)
    assert join.audited == [("user", "u9")]


RECORDS = st.lists(
    st.one_of(
        st.builds(ordered, st.sampled_from("abcd"), st.sampled_from(["u1", "u2"])),
        st.builds(
            flagged,
            st.sampled_from("abcd"),
            st.sampled_from([0.0, 0.5, 1.0]),
            st.sampled_from(["rates", "brushing"]),
            st.sampled_from(["u1", "u2"]),
        ),
        st.builds(
            label,
            st.sampled_from("abcd"),
            st.sampled_from(["fraud", "genuine"]),
            st.integers(1, 9),
            st.sampled_from(["u1", "u2"]),
        ),
    ),
    max_size=40,
)


def by_counting(records: list[Label | Note | Order]) -> Iterator[tuple[str, int, int, int]]:
    """Detector, flagged, right and wrong, from everything at once: who was known, flagged, and last said to be what."""
    known: set[tuple[str, str]] = set()
    kinds: dict[tuple[str, str], set[str]] = {}
    said: dict[tuple[str, str], tuple[int, str]] = {}
    for record in records:
        if isinstance(record, Order):
            known.add((record.user_id, record.order_id))
        elif isinstance(record, Note):
            for _, subject in record.subjects:
                known.add((record.user_id, subject))
                kinds.setdefault((record.user_id, subject), set()).add(record.kind)
        elif (record.user_id, record.id) in known:
            about = (record.user_id, record.id)
            if record.time_ms >= said.get(about, (0, ""))[0]:
                said[about] = (record.time_ms, record.label)
    for kind in ("brushing", "rates"):
        flagged_by = [about for about, names in kinds.items() if kind in names]
        words = [said[about][1] for about in flagged_by if about in said]
        yield kind, len(flagged_by), words.count("fraud"), words.count("genuine")


@settings(deadline=None)
@given(RECORDS, st.integers(0, 40))
def test_the_fold_counts_what_counting_everything_counts(
    records: list[Label | Note | Order], cut: int
) -> None:
    """Also when users live in two partitions whose counts are added, and with rows as bytes in between."""
    one, other = Join(), Join()
    for record in records:
        (one if record.user_id == "u1" or cut % 2 else other).take(record)
    tally = tallied([one.tally, other.tally])
    found = []
    for kind, _, _, _ in by_counting(records):
        detector = tally.detectors.get(f"{kind}/order")
        right, wrong = (sum(detector.right), sum(detector.wrong)) if detector else (0, 0)
        found.append((kind, detector.flagged if detector else 0, right, wrong))
    assert found == list(by_counting(records))


def test_a_row_is_bounded_and_says_so_by_taking_labels_it_cannot_check() -> None:
    """A buyer in a million orders: a forgotten order may have been made, so its label is not refused."""
    join = Join()
    for number in range(1100):
        join.take(ordered(f"o{number}"))
    assert len(join.rows["u1"]) < 16_384
    assert join.take(label("o3", "fraud")) == "waiting"
    join = Join()
    for number in range(300):
        join.take(flagged("ü" * 255 + f"{number}"))
    assert len(join.rows["u1"]) < 131_072
    assert join.tally.detectors["rates/order"].flagged == 300


def test_a_damaged_row_is_not_guessed_at() -> None:
    """Another version and a half row name what to do."""
    row = UserLabels(forgot=True).row()
    assert UserLabels.of_row(row).forgot
    for damaged in (b"", b"\x07" + row[1:], row[:-1] if len(row) > 2 else row):
        with pytest.raises(DamagedRow):
            UserLabels.of_row(damaged)
    with pytest.raises(DamagedRow):
        Tally.of_row(b"\x01\xc1")
