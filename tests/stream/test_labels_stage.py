"""The stage of labels: the same rows, counts and outputs however its records are cut; its metrics and commands."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Coroutine
from typing import Any, NamedTuple

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from stream.dead_letters import parse
from stream.label_metrics import LabelMetrics
from stream.label_records import ORDERS_KEY, Order, notes_of_alert, packed_orders, seen_note
from stream.label_writing import LabelLine
from stream.labels_stage import TALLY_KEY, LabelsWork
from stream.metrics import Metrics
from stream.outputs import load_schema
from stream.stage import Rendered
from tests.command_line import foreclick
from tests.stream.test_alerts_shown import HOSTILE
from tests.stream.test_label_join import alert, encoded


def outcome(coroutine: Coroutine[Any, Any, Rendered]) -> Rendered:
    """What a coroutine returns that waits for nothing but its turn."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]


def orders(*made: tuple[str, str]) -> bytes:
    """The value that tells of orders: user and order of each."""
    (value,) = packed_orders([Order(user, order, 5) for user, order in made])
    return value


class Record(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def work_of(rows: dict[bytes, bytes], audit_rate: float = 0.5) -> LabelsWork:
    return LabelsWork(
        topic="labels",
        topic_id="T",
        source="/foreclick/labels",
        partition=3,
        dead_letters_topic="dlq",
        audit_topic="audit",
        audit_rate=audit_rate,
        tally=rows.get(TALLY_KEY),
    )


def run(
    records: list[Record], cuts: list[int], restart: bool = False
) -> tuple[dict[bytes, bytes], list[Any]]:
    """Rows and outputs after all micro-batches; ``restart`` begins each of them with a new worker."""
    rows: dict[bytes, bytes] = {}
    outputs: list[Any] = []
    work = work_of(rows)
    edges = [0, *sorted(cuts), len(records)]
    for start, end in itertools.pairwise(edges):
        batch = records[start:end]
        decoded = work.decode(batch)
        rendered = outcome(work.score(decoded, [rows.get(key) for key in decoded.keys], 0))
        for key, row in rendered.rows:
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row
        outputs += [
            (topic, *message) for topic in sorted(rendered.messages) for message in rendered.messages[topic]
        ]
        if restart:
            work = work_of(rows)
    return rows, outputs


USERS = ["u1", "u2", HOSTILE[:100]]
RECORDS = st.lists(
    st.one_of(
        st.builds(
            lambda made: (ORDERS_KEY, orders(*made)),
            st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from("abc")), min_size=1, max_size=4),
        ),
        st.builds(
            lambda u, o, word, at: (u.encode(), encoded(user_id=u, id=o, label=word, time_ms=at)),
            st.sampled_from(USERS),
            st.sampled_from("abc"),
            st.sampled_from(["fraud", "genuine", "maybe"]),
            st.integers(1, 5),
        ),
        st.builds(lambda u: (u.encode(), None), st.sampled_from(USERS)),
        st.just((b"u1", b"\xff")),
    ),
    max_size=25,
).map(lambda pairs: [Record(offset, key, value) for offset, (key, value) in enumerate(pairs)])


@settings(deadline=None, max_examples=50)  # a stopped machine is no failure
@given(RECORDS, st.data())
def test_no_bit_depends_on_how_the_records_are_cut_or_on_a_restart(
    records: list[Record], data: st.DataObject
) -> None:
    """Rows, counts, dead letters and audits are a fold over the records alone."""
    whole = run(records, [])
    cuts = data.draw(st.lists(st.integers(0, len(records)), max_size=5))
    rows, outputs = run(records, cuts, restart=data.draw(st.booleans()))
    assert rows == whole[0]
    assert sorted(map(repr, outputs)) == sorted(map(repr, whole[1]))


@settings(deadline=None, max_examples=50)
@given(RECORDS)
def test_every_record_has_one_destination(records: list[Record]) -> None:
    """A row or a dead letter with its bytes: as many letters as records that were rejected, none in silence."""
    work = work_of({}, audit_rate=0.0)
    decoded = work.decode(records)
    rendered = outcome(work.score(decoded, [None] * len(decoded.keys), 0))
    counts = rendered.counts
    letters = list(rendered.messages.get("dlq", ()))
    notes = sum(record.key == ORDERS_KEY for record in records)
    assert len(records) == sum(counts.outcomes.values()) + len(letters) + counts.erased + notes
    for key, value, headers in letters:
        letter = parse(headers)
        assert letter is not None
        assert (letter.topic, letter.partition) == ("labels", 3)
        assert (key, value) == (records[letter.offset].key, records[letter.offset].value)


def test_what_changes_nothing_writes_nothing() -> None:
    """An order told again, or a label that joins nothing, leaves rows and counts and their changelog as they are."""
    first = [Record(0, ORDERS_KEY, orders(("u1", "a"), ("u2", "a")))]
    rows, _ = run(first, [])
    work = work_of(rows)
    decoded = work.decode([*first, Record(1, b"u3", encoded(user_id="u3", id="a"))])
    assert decoded.keys == [b"u1", b"u2", b"u3"]
    again = outcome(work.score(decoded, [rows.get(key) for key in decoded.keys], 0))
    assert (again.rows, again.counts.dead_letters) == ([], {"unknown_subject": 1})


def test_a_tombstone_erases_the_user_and_not_the_counts() -> None:
    """Counts name nobody."""
    records = [
        Record(0, ORDERS_KEY, orders(("u1", "a"))),
        Record(1, b"u1", encoded(user_id="u1", id="a")),
        Record(2, b"u1", None),
    ]
    rows, _ = run(records, [])
    assert set(rows) == {TALLY_KEY}
    assert work_of(rows).tally.labels == {"waiting": 1}


def test_audits_fit_their_schema_and_tell_whom_to_label() -> None:
    """Also under hostile ids, whose headers are percent-encoded."""
    work = work_of({}, audit_rate=1.0)
    user = HOSTILE[:100]
    decoded = work.decode([Record(7, ORDERS_KEY, orders((user, HOSTILE[:100])))])
    rendered = outcome(work.score(decoded, [None], 0))
    audits = list(rendered.messages["audit"])
    assert len(audits) == 2
    for key, value, headers in audits:
        jsonschema.validate(json.loads(value or b""), load_schema("alerts.audit"))
        assert key == user.encode()
        assert all((text or b"").decode().isprintable() for _, text in headers)
    assert dict(audits[0][2])["ce_id"].startswith(b"T/3/7/audit/user/")  # type: ignore[union-attr]


# ---- metrics


def test_precision_and_recall_are_told_by_detector_and_nan_before_the_first_label() -> None:
    """In the exposition format, as a Prometheus server reads it."""
    rows: dict[bytes, bytes] = {}
    work = work_of(rows)
    metrics = Metrics()
    LabelMetrics(metrics, lambda: work.tally)

    def samples(name: str) -> dict[str, float]:
        families = text_string_to_metric_families(metrics.text().decode())
        return {
            each.labels["detector"]: each.value
            for one in families
            if one.name == name
            for each in one.samples
        }

    assert samples("foreclick_alert_precision") == {}
    records = [Record(offset, *note) for offset, note in enumerate(notes_of_alert(alert()))]
    decoded = work.decode(records)
    outcome(work.score(decoded, [None] * len(decoded.keys), 0))
    assert math.isnan(samples("foreclick_alert_precision")["order_brushing"])
    assert math.isnan(samples("foreclick_alert_recall")["order_brushing"])
    label = [Record(9, b"u1", encoded(user_id="u1", id="o1", label="fraud"))]
    decoded = work.decode(label)
    note = next(record.value for record in records if record.key == b"u1")
    flagged = work_of({})
    noted_row = outcome(flagged.score(flagged.decode([Record(0, b"u1", note)]), [None], 0)).rows[0][1]
    outcome(work.score(decoded, [noted_row], 0))
    assert samples("foreclick_alert_precision") == {"order_brushing": 1.0}


# ---- commands


def test_a_file_with_a_line_that_is_no_label_writes_nothing(tmp_path: Any) -> None:
    """The error names file, line and reason; there is no broker in this test, and none is asked."""
    file = tmp_path / "labels.jsonl"
    file.write_bytes(encoded() + b"\n" + encoded(label="maybe") + b"\n")
    error = foreclick("labels", "import", file).error
    assert f"{file}:2 is no label (wrong_type" in error
    file.write_bytes(b"\n\n")
    assert "holds no labels" in foreclick("labels", "import", file).error
    file.write_bytes(seen_note("u1", 5))
    assert "a note of a stage" in foreclick("labels", "import", file).error


def test_putting_a_label_checks_it_first() -> None:
    """As the pipeline would; an order needs its user."""
    assert "--user" in foreclick("labels", "put", "order", "o1", "fraud", "--by", "mary").error
    churned = foreclick("labels", "put", "order", "o1", "churned", "--user", "u1", "--by", "mary")
    assert "contradictory_label" in churned.error
    assert "\x1b" not in foreclick("labels", "put", "user", "\0\x1b", "fraud", "--by", "mary").err


def test_a_label_line_is_keyed_by_its_user() -> None:
    """Whatever bytes the id holds; the value is the line's own."""
    value = encoded(user_id=HOSTILE[:100])
    assert LabelLine.checked("f:1", value) == (HOSTILE[:100].encode(), value)
