"""Laws of the shipped schemas."""

from __future__ import annotations

import jsonschema
import pytest

from stream.outputs import TOPIC_KINDS, load_schema

SAMPLES = {
    "alerts.audit": [
        {
            "id": "audit/order/o1",
            "subject_type": "order",
            "subject": "o1",
            "user_id": "u17",
            "event_time_ms": 1511550516000,
            "rate": 0.01,
        }
    ],
    "clicks": [
        {"user_id": "u17", "event_time_ms": 1511550516000, "action": "view"},
        {
            "user_id": "u17",
            "event_time_ms": 1511550516000,
            "action": "zoom",
            "event_id": None,
            "colour": "red",
        },
        {
            "user_id": "u17",
            "event_time_ms": 1511550516000,
            "action": "purchase",
            "event_id": "e9",
            "shop_id": "s1",
            "order_id": "o1",
            "price": 19.9,
            "quantity": 2,
            "currency": "EUR",
            "dwell_ms": 1200,
            "ip": "10.0.0.1",
            "lines": [{"item_id": "i1", "category_id": "c1", "price": 9.95, "quantity": 2}],
            "extra": {"scroll": 0.4},
        },
    ],
    "clicks.dlq": [],
    "labels": [
        {
            "subject": "order",
            "id": "o1",
            "user_id": "u17",
            "label": "fraud",
            "time_ms": 1511550516000,
            "by": "mary",
        }
    ],
    "alerts.fraud": [
        {
            "id": "order_brushing/shop/s1/1511550516000",
            "kind": "order_brushing",
            "subject_type": "shop",
            "subject": "s1",
            "score": 0.8,
            "probability": None,
            "severity": "medium",
            "event_time_ms": 1511550516000,
            "reasons": [{"code": "order_brushing", "text": "5 orders of 1 buyer", "orders": 5, "buyers": 1}],
            "evidence": [
                {
                    "order_id": "o1",
                    "user_id": "u17",
                    "event_time_ms": 1511546916000,
                    "source": {"topic": "clicks", "partition": 3, "offset": 18842},
                }
            ],
            "members": ["u17"],
            "approximate": False,
            "supersedes": supersedes,
            "held_back": 2,
        }
        for supersedes in (None, "order_brushing/shop/s1/1511550000000")
    ],
    "alerts.churn": [
        {
            "id": f"T/3/18842/{kind}/u17",
            "kind": kind,
            "subject_type": "user",
            "subject": "u17",
            "score": score,
            "probability": score or None,
            "severity": "low",
            "event_time_ms": 1512550516000,
            "reasons": [
                {"code": "silence", "text": "silent for 12 days", "silence_s": 1000000, "horizon_s": 2592000}
            ],
            "evidence": [
                {
                    "user_id": "u17",
                    "event_time_ms": 1511550516000,
                    "source": {"topic": "clicks", "partition": 3, "offset": 18842},
                }
            ],
            "members": [],
            "approximate": False,
            "supersedes": supersedes,
            "held_back": 0,
        }
        for kind, score, supersedes in (
            ("churn.expected", 0.51, None),
            ("churn.returned", 0.0, "T/3/18000/churn.expected/u17/1512000000000"),
        )
    ],
    "user_vectors": [
        {
            "schema": "foreclick.user_vector.v1",
            "user_id": "u17",
            "event_time_ms": 1511550516000,
            "model": {"name": "shop-lstm", "version": "7"},
            "dimension": 3,
            "vector": [0.1, -0.5, 2],
        }
    ],
    "foreclick.control": [
        {
            "schema": "foreclick.control.v1",
            "kind": "activate",
            "model": {"name": "shop-lstm", "version": "7", "sha256": "0a" * 32},
            "root": "/srv/models",
            "time_ms": 1511550516000,
            "by": "mary",
        },
        {
            "schema": "foreclick.control.v1",
            "kind": "labels",
            "partition": 1,
            "detectors": {"order_brushing/order": [3, [0] * 19 + [2], [0] * 20]},
        },
    ],
    "predictions": [
        {
            "schema": "foreclick.prediction.v1",
            "user_id": "u17",
            "event_id": "e9",
            "event_time_ms": 1511550516000,
            "source": {"topic": "clicks", "partition": 3, "offset": 18842},
            "session": {"index": 3, "position": 12},
            "model": {"name": "shop-lstm", "version": "7"},
            "next_action": {"view": 0.81, "cart": 0.11, "favourite": 0.05, "purchase": 0.03},
            "next_category": [{"category": "4869428", "probability": 0.21}],
            "purchase_probability": 0.08,
            "churn_probability": 0.12,
            "churn_horizon_s": 2592000,
            "median_gap_s": 41.0,
            "anomaly": {
                "score": 0.97,
                "surprisal_nats": 8.3,
                "too_predictable": 0.41,
                "reasons": [{"code": "unlikely_action", "nats": 6.2}, {"code": "unlikely_gap", "nats": 2.1}],
            },
            "fake_order": {"score": 0.5, "probability": None},
            "user_vector": None,
        }
    ],
}


def test_every_topic_has_a_sound_schema_and_samples():
    """Each schema is valid JSON Schema 2020-12, and describes itself."""
    assert set(SAMPLES) == set(TOPIC_KINDS)
    for kind in TOPIC_KINDS:
        schema = load_schema(kind)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["description"]


@pytest.mark.parametrize("kind", TOPIC_KINDS)
def test_samples_match_their_schema_and_wrong_ones_do_not(kind):
    """A sample passes; without a required field, or with a foreign one where the object is ours, it does not."""
    schema = load_schema(kind)
    validator = jsonschema.Draft202012Validator(schema)
    for sample in SAMPLES[kind]:
        validator.validate(sample)
        for field in schema["required"]:
            assert not validator.is_valid({name: value for name, value in sample.items() if name != field}), (
                field
            )
        if kind != "clicks":
            assert not validator.is_valid(sample | {"surprise": 1})


def test_dead_letters_may_hold_anything():
    """Their value is the original bytes: the schema describes the headers in words and forbids nothing."""
    validator = jsonschema.Draft202012Validator(load_schema("clicks.dlq"))
    assert all(validator.is_valid(anything) for anything in (None, 1, "x", [], {"a": 1}))
    assert "__streams.errors.offset" in load_schema("clicks.dlq")["description"]


def test_an_unknown_topic_kind_is_an_error_that_lists_the_known():
    """A typo does not read a file."""
    with pytest.raises(ValueError, match=r"'\.\./clicks'; there are alerts.audit"):
        load_schema("../clicks")
