"""Laws of rendered predictions and their headers."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import BrokenInvariant
from stream.outputs import PredictionRenderer, load_schema
from stream.rendering import MAX_NAME_BYTES, JsonTexts, NameTable, rfc3339
from tests.stream.predictions import K, Prediction, arguments_of, reference

ACTIONS = ("view", "cart", 'say "hi"', "köpa", "other")
KNOWN = {1: "shoes", 2: 'a "quoted" \\ name', 3: "鞋子", 2**32 - 1: "x" * 60}  # the model's vocabulary
LEARNT = {
    7: "",
    1025: "collides with 1",
    2049: "too",
    9: "line\nbreak\x00",
    10: "🙂",
    11: "n" * (MAX_NAME_BYTES - 2),
}
NAMES = KNOWN | LEARNT | {12: "n" * (MAX_NAME_BYTES - 1)}
SHOWN = KNOWN | LEARNT  # a name longer than the limit is left out
PLACE = {
    "topic": "clicks",
    "topic_id": "mGPxVDvDTBSgXhH6ZDRmFw",
    "churn_horizon_s": 2_592_000,
}
ORDINARY = Prediction(
    user_id="u17",
    event_id="e9",
    event_time_ms=1_511_550_516_000,
    partition=3,
    offset=18_842,
    session_index=3,
    session_position=12,
    next_action=[0.81, 0.11, 0.05, 0.03, 0.0],
    categories=[(1, 0.21), (2, 0.1)],
    purchase_probability=0.08,
    churn_probability=0.12,
    median_gap_s=41.0,
    terms=[6.2, 0.0, 2.1],
    too_predictable=0.41,
    anomaly_score=0.97,
)


def a_renderer() -> PredictionRenderer:
    return PredictionRenderer("shop-lstm", "7", ACTIONS, KNOWN, **PLACE, source="/foreclick/clicks")


def expected(one: Prediction) -> dict:
    return reference(one, ACTIONS, SHOWN, **PLACE, model=("shop-lstm", "7"))


_slow_machines = settings(max_examples=60, deadline=None)
_probability = st.floats(0, 1, width=32) | st.sampled_from(
    [0.0, 1.0, 1e-7, -0.0, 5e-7, 1.5e-6, 2.5e-6, 0.9999996]
)
_nats = st.floats(-50, 200, width=32) | st.sampled_from([0.0, -0.0, 4e-7, -4e-7, 1e30, -1e30, 0.5, 1.0])
_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_id = _text | st.integers(JsonTexts.MAX_LENGTH - 40, JsonTexts.MAX_LENGTH + 2).map(lambda n: "ü" + "i" * n)
_predictions = st.builds(
    Prediction,
    user_id=_id | st.just('","'),
    event_id=st.none() | _id,
    event_time_ms=st.integers(1 - 2**63, 2**63 - 1) | st.integers(1_500_000_000_000, 1_600_000_000_000),
    partition=st.integers(0, 2**31 - 1) | st.integers(0, 12),
    offset=st.integers(0, 2**63 - 1) | st.integers(0, 10**6),
    session_index=st.integers(1, 2**31 - 1) | st.integers(1, 20),
    session_position=st.integers(1, 2**31 - 1) | st.integers(1, 20),
    next_action=st.lists(_probability, min_size=len(ACTIONS), max_size=len(ACTIONS)),
    categories=st.lists(st.tuples(st.sampled_from([*NAMES, 0, 5, 3073]), _probability), max_size=K),
    purchase_probability=_probability,
    churn_probability=_probability,
    median_gap_s=st.floats(0, 2.0**40, width=32)
    | st.sampled_from([0.0, -0.0, 0.0005, 41.0, 1e38, float("inf")]),
    terms=st.lists(_nats, min_size=3, max_size=3),
    too_predictable=_probability,
    anomaly_score=_probability,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_predictions, max_size=8))
def test_rendered_values_equal_the_plain_ones(predictions):
    """The fast renderer says what dicts and rounding say, whatever the content, in the same order of fields."""
    values, _ = a_renderer().render(*arguments_of(predictions), NAMES)
    plain = [expected(one) for one in predictions]
    assert [json.loads(value) for value in values] == plain
    assert [list(json.loads(value)) for value in values] == [list(one) for one in plain]


@settings(max_examples=60, deadline=None)
@given(st.lists(_predictions, min_size=1, max_size=8))
def test_a_predictions_bytes_do_not_depend_on_its_batch(predictions):
    """Alone, in company, after others: the same value and headers, byte by byte."""
    together = list(zip(*a_renderer().render(*arguments_of(predictions), NAMES), strict=True))
    alone = [next(zip(*a_renderer().render(*arguments_of([one]), NAMES), strict=True)) for one in predictions]
    assert together == alone


def test_batches_larger_than_a_tile_keep_their_order():
    """Row i of the arrays is value i, across the renderer's inner tiles."""
    many = [replace(ORDINARY, offset=i, user_id=f"u{i}", anomaly_score=i / 5000) for i in range(1500)]
    values, headers = a_renderer().render(*arguments_of(many), NAMES)
    assert [json.loads(value) for value in values] == [expected(one) for one in many]
    assert [dict(one)["ce_subject"].decode() for one in headers] == [one.user_id for one in many]


def test_the_value_reads_as_the_schema_lists_it():
    """One value, written out: compact, fields in order, numbers in plain notation."""
    values, _ = a_renderer().render(*arguments_of([ORDINARY]), NAMES)
    assert values == [
        b'{"schema":"foreclick.prediction.v1","user_id":"u17","event_id":"e9","event_time_ms":1511550516000,'
        b'"source":{"topic":"clicks","partition":3,"offset":18842},"session":{"index":3,"position":12},'
        b'"model":{"name":"shop-lstm","version":"7"},'
        b'"next_action":{"view":0.810000,"cart":0.110000,'
        b'"say \\"hi\\"":0.050000,"k\xc3\xb6pa":0.030000,"other":0.000000},'
        b'"next_category":[{"category":"shoes","probability":0.210000},'
        b'{"category":"a \\"quoted\\" \\\\ name","probability":0.100000}],'
        b'"purchase_probability":0.080000,"churn_probability":0.120000,"churn_horizon_s":2592000,'
        b'"median_gap_s":41.000000,"anomaly":{"score":0.970000,"surprisal_nats":8.300000,"too_predictable":0.410000,'
        b'"reasons":[{"code":"unlikely_action","nats":6.200000},{"code":"unlikely_gap","nats":2.100000}]},'
        b'"fake_order":null,"user_vector":null}'
    ]


@_slow_machines
@given(st.lists(_nats, min_size=3, max_size=3))
def test_reasons_add_up_to_the_surprisal(terms):
    """An analyst who adds the shown reasons gets the shown sum, exactly, in descending order."""
    values, _ = a_renderer().render(*arguments_of([replace(ORDINARY, terms=terms)]), NAMES)
    anomaly = json.loads(values[0])["anomaly"]
    micro = [round(reason["nats"] * 1e6) for reason in anomaly["reasons"]]
    assert sum(micro) == round(anomaly["surprisal_nats"] * 1e6)
    assert micro == sorted(micro, reverse=True)


@_slow_machines
@given(_predictions)
def test_predictions_match_their_schema(one):
    """What is published is what the shipped schema promises."""
    one = replace(one, event_time_ms=abs(one.event_time_ms) % 2**52 + 1)
    values, _ = a_renderer().render(*arguments_of([one]), NAMES)
    jsonschema.Draft202012Validator(load_schema("predictions")).validate(json.loads(values[0]))


@_slow_machines
@given(_predictions, _probability, st.none() | _probability, st.booleans())
def test_a_supervised_score_is_an_object_and_no_probability_is_null(one, score, probability, vectors):
    """Score and probability with six decimals, null where labels were too few, also beside a user vector."""
    one = replace(one, fake_order=(score, float("nan") if probability is None else probability))
    vector = np.zeros((1, 2), np.float16) if vectors else None
    values, _ = a_renderer().render(*arguments_of([one]), NAMES, vector)
    assert json.loads(values[0]) == expected(one) | {"user_vector": [0.0, 0.0] if vectors else None}


@_slow_machines
@given(st.lists(_predictions, min_size=1, max_size=5), st.booleans(), st.data())
def test_every_order_has_a_score_without_labels(predictions, vectors, data):
    """Its anomaly's, of orders alone, and no probability; a head of the model's own says it of every event instead."""
    orders = data.draw(st.lists(st.booleans(), min_size=len(predictions), max_size=len(predictions)))
    predictions = [replace(one, order=order) for one, order in zip(predictions, orders, strict=True)]
    vector = np.zeros((len(predictions), 2), np.float16) if vectors else None
    values, _ = a_renderer().render(*arguments_of(predictions), NAMES, vector, np.array(orders))
    shown = {"user_vector": [0.0, 0.0] if vectors else None}
    assert [json.loads(value) for value in values] == [expected(one) | shown for one in predictions]
    supervised = [replace(one, fake_order=(0.25, 0.5)) for one in predictions]
    values, _ = a_renderer().render(*arguments_of(supervised), NAMES, vector, np.array(orders))
    assert [json.loads(value) for value in values] == [expected(one) | shown for one in supervised]


def test_user_vectors_are_rendered_when_asked_for():
    """Four decimals, no negative zero, and the schema allows it."""
    vectors = np.array([[0.12345, -0.00001, 1.0], [-2.5, 0.0, 60000.0]], np.float16)
    values, _ = a_renderer().render(*arguments_of([ORDINARY, ORDINARY]), NAMES, vectors)
    assert [json.loads(value)["user_vector"] for value in values] == [
        [0.1235, 0.0, 1.0],
        [-2.5, 0.0, 60000.0],
    ]
    assert b"-0.0," not in values[0]
    assert json.loads(values[0]) == expected(ORDINARY) | {"user_vector": [0.1235, 0.0, 1.0]}
    jsonschema.Draft202012Validator(load_schema("predictions")).validate(json.loads(values[0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.001, 1.001])
@pytest.mark.parametrize(
    "field",
    [
        "next_action",
        "top_category_probability",
        "purchase_probability",
        "churn_probability",
        "anomaly_score",
        "too_predictable",
    ],
)
def test_what_is_no_probability_is_never_rendered(field, bad):
    """The error names the score, its value and the event; nothing is returned."""
    arguments = arguments_of([ORDINARY, replace(ORDINARY, offset=18_843)])
    getattr(arguments[7], field)[1] = bad
    with pytest.raises(BrokenInvariant, match=rf"{field} {bad}.* at clicks\[3\]@18843"):
        a_renderer().render(*arguments, NAMES)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("terms", float("nan")),
        ("terms", float("-inf")),
        ("median_gap_s", float("nan")),
        ("median_gap_s", -1.0),
    ],
)
def test_what_is_no_number_is_never_rendered(field, bad):
    """Nats are finite and a gap is not negative, or the process ends."""
    arguments = arguments_of([replace(ORDINARY, offset=1), ORDINARY])
    getattr(arguments[7], field)[0] = bad
    with pytest.raises(BrokenInvariant, match=r"at clicks\[3\]@1\."):
        a_renderer().render(*arguments, NAMES)


def test_a_user_vector_that_is_not_finite_is_never_rendered():
    """JSON has no NaN."""
    with pytest.raises(BrokenInvariant, match="user_vector nan"):
        a_renderer().render(*arguments_of([ORDINARY]), NAMES, np.array([[0.0, np.nan]], np.float16))


@_slow_machines
@given(
    st.dictionaries(
        st.integers(1, 2**32 - 1) | st.integers(1, 40).map(lambda i: i * 1024), _text, max_size=300
    )
)
def test_every_name_is_found_by_its_code(names):
    """However the codes collide, a code finds its own name, and codes without one find none."""
    known = dict(list(names.items())[: len(names) // 2])
    table = NameTable(known)
    codes = np.array([0, *names, 0, *(code for code in range(1, 50) if code not in names)], np.uint32)
    for _ in range(2):
        cells, lengths = table.texts(table.rows(codes, names))
        texts = [cell.tobytes()[cell.itemsize - n :] for cell, n in zip(cells, lengths, strict=True)]
        assert [json.loads(text or b"null") for text in texts] == [names.get(code) for code in codes.tolist()]


def test_names_whose_codes_crowd_are_remembered():
    """However many codes share their low bits, each keeps the name that it was given first."""
    crowd = {i << 20: f"name {i}" for i in range(1, 40)}
    table = NameTable(crowd)
    cells, lengths = table.texts(table.rows(np.array([*crowd], np.uint32), {}))
    texts = [cell.tobytes()[cell.itemsize - n :] for cell, n in zip(cells, lengths, strict=True)]
    assert [json.loads(text) for text in texts] == [*crowd.values()]


# ---------------------------------------------------------------------- headers


@_slow_machines
@given(_predictions)
def test_the_cloudevents_package_parses_the_headers(one):
    """Any user id and any time give an event that a consumer can read; its id tells position and subject."""
    values, headers = a_renderer().render(*arguments_of([one]), NAMES)
    event = from_binary(KafkaMessage(dict(headers[0]), one.user_id.encode(), values[0]), JSONFormat())
    subject = event.get_subject()
    assert event.get_id() == f"mGPxVDvDTBSgXhH6ZDRmFw/{one.partition}/{one.offset}/prediction/{subject}"
    assert event.get_source() == "/foreclick/clicks"
    assert event.get_type() == "foreclick.prediction.v1"
    assert event.get_datacontenttype() == "application/json"
    assert event.get_data() == expected(one)
    if one.user_id.isprintable():
        assert subject == one.user_id


def test_headers_are_those_of_the_kafka_binding():
    """Names, order and values of one record; the constant ones are shared objects."""
    _, headers = a_renderer().render(*arguments_of([ORDINARY, ORDINARY]), NAMES)
    assert headers[0] == [
        ("ce_specversion", b"1.0"),
        ("ce_type", b"foreclick.prediction.v1"),
        ("ce_source", b"/foreclick/clicks"),
        ("content-type", b"application/json"),
        ("ce_id", b"mGPxVDvDTBSgXhH6ZDRmFw/3/18842/prediction/u17"),
        ("ce_time", b"2017-11-24T19:08:36.000Z"),
        ("ce_subject", b"u17"),
    ]
    assert all(first is second for first, second in zip(headers[0][:4], headers[1][:4], strict=True))


def test_control_characters_of_a_user_id_are_percent_encoded_in_headers():
    """CloudEvents forbids them in attributes; the value keeps the id as it is."""
    values, headers = a_renderer().render(*arguments_of([replace(ORDINARY, user_id="a\n\x85ü b")]), NAMES)
    assert dict(headers[0])["ce_subject"].decode() == "a%0A%C2%85ü b"
    assert json.loads(values[0])["user_id"] == "a\n\x85ü b"


def test_times_beyond_the_calendar_are_clamped():
    """RFC 3339 has years of four digits; the value keeps the exact time."""
    times = np.array([-(2**63), -1, 0, 951_782_400_000, 2**63 - 1], np.int64)
    assert rfc3339(times) == [
        b"0001-01-01T00:00:00.000Z",
        b"1969-12-31T23:59:59.999Z",
        b"1970-01-01T00:00:00.000Z",
        b"2000-02-29T00:00:00.000Z",
        b"9999-12-31T23:59:59.999Z",
    ]
