"""One prediction as plain values, and the slow, obvious renderer that the fast one is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

MAX_GAP_S = 3_155_760_000
MAX_NATS = 1_000_000
REASONS = ("unlikely_action", "unlikely_category", "unlikely_gap")
K = 20


@dataclass
class Prediction:
    """Everything that the value of one prediction tells of its event; ``categories`` are (code, probability)."""

    user_id: str
    event_id: str | None
    event_time_ms: int
    partition: int
    offset: int
    session_index: int
    session_position: int
    next_action: list[float]
    categories: list[tuple[int, float]]
    purchase_probability: float
    churn_probability: float
    median_gap_s: float
    terms: list[float]
    too_predictable: float
    anomaly_score: float
    fake_order: tuple[float, float] | None = None
    order: bool = False


def arguments_of(predictions: Sequence[Prediction]) -> tuple[Any, ...]:
    """The arrays that ``PredictionRenderer.render`` takes, before ``names``."""
    padded = [one.categories + [(0, 0.0)] * (K - len(one.categories)) for one in predictions]

    def floats(name: str) -> np.ndarray:
        return np.array([getattr(one, name) for one in predictions], np.float32)

    width = 2 if any(one.fake_order for one in predictions) else 0
    result = SimpleNamespace(
        next_action=floats("next_action"),
        top_category=np.array([[code for code, _ in row] for row in padded], np.uint32).reshape(-1, K),
        top_category_probability=np.array([[p for _, p in row] for row in padded], np.float32).reshape(-1, K),
        purchase_probability=floats("purchase_probability"),
        churn_probability=floats("churn_probability"),
        median_gap_s=floats("median_gap_s"),
        terms=floats("terms").reshape(-1, 3),
        too_predictable=floats("too_predictable"),
        anomaly_score=floats("anomaly_score"),
        fake_order=np.array([one.fake_order or () for one in predictions], np.float32).reshape(
            len(padded), width
        ),
    )
    return (
        [one.user_id for one in predictions],
        [one.event_id for one in predictions],
        np.array([one.event_time_ms for one in predictions], np.int64),
        np.array([one.partition for one in predictions], np.int64),
        np.array([one.offset for one in predictions], np.int64),
        np.array([one.session_index for one in predictions], np.int32),
        np.array([one.session_position for one in predictions], np.int32),
        result,
    )


def reference(
    one: Prediction,
    actions: Sequence[str],
    names: Mapping[int, str],
    *,
    topic: str,
    topic_id: str,
    churn_horizon_s: int,
    model: tuple[str, str],
) -> dict[str, Any]:
    """The value of a prediction as a dict, field by field as the schema lists them."""
    nats = [six(min(max(term, -MAX_NATS), MAX_NATS)) for term in one.terms]
    reasons = [{"code": code, "nats": value} for code, value in zip(REASONS, nats, strict=True) if value]
    micro_nats = sum(round(value * 1_000_000) for value in nats)
    return {
        "schema": "foreclick.prediction.v1",
        "user_id": one.user_id,
        "event_id": one.event_id or f"{topic_id}/{one.partition}/{one.offset}",
        "event_time_ms": one.event_time_ms,
        "source": {"topic": topic, "partition": one.partition, "offset": one.offset},
        "session": {"index": one.session_index, "position": one.session_position},
        "model": {"name": model[0], "version": model[1]},
        "next_action": {name: six(p) for name, p in zip(actions, one.next_action, strict=True)},
        "next_category": [
            {"category": names[code], "probability": six(p)}
            for code, p in one.categories
            if code and code in names
        ],
        "purchase_probability": six(one.purchase_probability),
        "churn_probability": six(one.churn_probability),
        "churn_horizon_s": churn_horizon_s,
        "median_gap_s": round(min(float(np.float32(one.median_gap_s)), MAX_GAP_S), 3) + 0.0,
        "anomaly": {
            "score": six(one.anomaly_score),
            "surprisal_nats": micro_nats / 1_000_000,
            "too_predictable": six(one.too_predictable),
            "reasons": sorted(reasons, key=lambda reason: -reason["nats"]),
        },
        "fake_order": _fake_order(one),
        "user_vector": None,
    }


def six(number: float) -> float:
    """Six decimals, and no negative zero."""
    return round(float(np.float32(number)), 6) + 0.0


def _fake_order(one: Prediction) -> dict[str, Any] | None:
    if one.fake_order:
        score, probability = one.fake_order
        return {"score": six(score), "probability": None if np.isnan(probability) else six(probability)}
    return {"score": six(one.anomaly_score), "probability": None} if one.order else None
