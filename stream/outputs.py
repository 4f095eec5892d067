"""Predictions as records: JSON value and CloudEvents headers; and the JSON Schema of every topic."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream.prediction_values import PREDICTION_SCHEMA, PredictionValues, Scores
from stream.rendering import rfc3339

__all__ = [
    "TOPIC_KINDS",
    "Headers",
    "PredictionRenderer",
    "constant_headers",
    "load_schema",
    "printable_subject",
]

TOPIC_KINDS: Final = (
    "alerts.audit",
    "alerts.churn",
    "alerts.fraud",
    "clicks",
    "clicks.dlq",
    "foreclick.control",
    "labels",
    "predictions",
    "user_vectors",
)

# Line separators and marks that turn the direction of text are no control characters, but readers of logs take
# them for such.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")

Headers = list[tuple[str, bytes]]


def load_schema(topic_kind: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a topic's values; ``topic_kind`` is its default name, one of TOPIC_KINDS."""
    if topic_kind not in TOPIC_KINDS:
        raise ValueError(f"No schema for the topic kind {topic_kind!r}; there are {', '.join(TOPIC_KINDS)}.")
    schema: dict[str, Any] = json.loads(
        (Path(__file__).parent / "schemas" / f"{topic_kind}.json").read_text("utf-8")
    )
    return schema


def printable_subject(subject: str) -> str:
    """A subject as CloudEvents allows it: control characters, and what readers of logs take for such, encoded."""
    if subject.isprintable():
        return subject
    return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), subject)


def constant_headers(schema: str, source: str) -> Headers:
    """The headers that every event of a kind has; ``source`` is a URI reference.

    Source: CloudEvents 1.0.2; Kafka protocol binding, section 3.2.
    """
    return [
        ("ce_specversion", b"1.0"),
        ("ce_type", schema.encode()),
        ("ce_source", source.encode()),
        ("content-type", b"application/json"),
    ]


class EventHeaders:
    """Headers of what is said after an event, named after the event's place in the source.

    Args:
        schema: of the value.
        what: is said; part of ``ce_id``.
        topic_id: of the source, as readable text.
        source: CloudEvents source.
    """

    def __init__(self, schema: str, what: str, *, topic_id: str, source: str) -> None:
        self._topic_id, self._what = topic_id, what
        self._constant = constant_headers(schema, source)

    def of(
        self,
        user_ids: Sequence[str],
        event_time_ms: NDArray[np.int64],
        partitions: NDArray[np.int64],
        offsets: NDArray[np.int64],
    ) -> list[Headers]:
        """CloudEvents 1.0 headers of the Kafka binary mode; values are UTF-8.

        CloudEvents forbids control characters in attributes, so those of a user id are percent-encoded here (as UTF-8).

        Source: CloudEvents 1.0.2, type system; Kafka protocol binding, section 3.2.
        """
        topic_id, what = self._topic_id, self._what
        subjects = user_ids
        if not "".join(user_ids).isprintable():
            subjects = [printable_subject(user) for user in user_ids]
        specversion, kind, source, content_type = self._constant
        return [
            [
                specversion,
                kind,
                source,
                content_type,
                ("ce_id", f"{topic_id}/{part}/{offset}/{what}/{subject}".encode()),
                ("ce_time", time),
                ("ce_subject", subject.encode()),
            ]
            for part, offset, time, subject in zip(
                partitions.tolist(), offsets.tolist(), rfc3339(event_time_ms), subjects, strict=True
            )
        ]


class PredictionRenderer:
    """Renders predictions of a source topic, of all its partitions alike. Not for several threads: it keeps scratch.

    Args:
        model_name, model_version: of the artefact that made the scores.
        actions: names of the A columns of ``next_action``, ``other`` included.
        category_names: names by code known beforehand, such as the model's vocabulary.
        topic, topic_id: the source; the id as readable text.
        churn_horizon_s: what ``churn_probability`` is about, seconds.
        source: CloudEvents source, a URI reference.
    """

    def __init__(
        self,
        model_name: str,
        model_version: str,
        actions: tuple[str, ...],
        category_names: Mapping[int, str] | None = None,
        *,
        topic: str,
        topic_id: str,
        churn_horizon_s: int,
        source: str,
    ) -> None:
        values = PredictionValues(
            model_name,
            model_version,
            actions,
            category_names or {},
            topic=topic,
            topic_id=topic_id,
            churn_horizon_s=churn_horizon_s,
        )
        #: The values alone, for files: ``values(...)`` takes what ``render`` takes.
        self.values: Final = values.render
        #: The headers alone.
        self.headers: Final = EventHeaders(
            PREDICTION_SCHEMA, "prediction", topic_id=topic_id, source=source
        ).of

    def render(
        self,
        user_ids: Sequence[str],
        event_ids: Sequence[str | None],
        event_time_ms: NDArray[np.int64],
        partitions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        session_index: NDArray[np.int32],
        session_position: NDArray[np.int32],
        result: Scores,
        names: Mapping[int, str],
        user_vectors: NDArray[np.float16] | None = None,
        orders: NDArray[np.bool_] | None = None,
    ) -> tuple[list[bytes], list[Headers]]:
        """Render the predictions of M events.

        Args:
            user_ids: of M events.
            event_ids: an event without one is named after its source position.
            event_time_ms: (M,) since 1970, UTC.
            partitions: (M,) of the source.
            offsets: (M,) in the source partition.
            session_index: (M,) from 1.
            session_position: (M,) from 1.
            result: scores, row i of event i.
            names: category names by code. It may grow from call to call, but a code keeps its name.
                Codes without a name are left out.
            user_vectors: (M, H), rendered with 4 decimals; None renders null.
            orders: (M,) which events are orders: ``fake_order`` of these has their anomaly as score where the model has
                no head of its own for it. None: of no event.

        Returns:
            M values and M lists of headers.

        Raises:
            BrokenInvariant: a score is NaN, infinite or no probability; the message names score and event.
        """
        values = self.values(
            user_ids,
            event_ids,
            event_time_ms,
            partitions,
            offsets,
            session_index,
            session_position,
            result,
            names,
            user_vectors,
            orders,
        )
        return values, self.headers(user_ids, event_time_ms, partitions, offsets)
