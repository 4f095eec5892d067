"""What the stock agent does with one event, without Faust: decode, fold, score, render.

One user's row at a time, as an agent that takes one event after the other would have it. The values and headers are
those of ``stream.outputs`` field by field; tests/bench/test_stock.py holds the two against each other.
"""

from __future__ import annotations

import base64
import datetime
from dataclasses import dataclass
from typing import Any

import msgspec
import xxhash

from models.registry import Artefact
from tests.bench.stock_model import Answer, OneRowModel
from tests.bench.stock_row import RowFormat, UserRow, advance, is_late, is_repeat

MAX_GAP_S = 3_155_760_000
_REASONS = ("unlikely_action", "unlikely_category", "unlikely_gap")


class Click(msgspec.Struct, gc=False):
    """The fields of the canonical event that the work needs."""

    user_id: str
    event_time_ms: int
    action: str
    event_id: str | None = None
    item_id: str | None = None
    category_id: str | None = None
    price: float | None = None


class Source(msgspec.Struct, gc=False):
    """Where an event came from."""

    topic: str
    partition: int
    offset: int


class Session(msgspec.Struct, gc=False):
    """Which session of the user, and which event of it; from 1."""

    index: int
    position: int


class Model(msgspec.Struct, gc=False):
    """Who predicts."""

    name: str
    version: str


class Category(msgspec.Struct, gc=False):
    """One candidate of the next category."""

    category: str
    probability: float


class Reason(msgspec.Struct, gc=False):
    """One term of the surprisal."""

    code: str
    nats: float


class Anomaly(msgspec.Struct, gc=False):
    """How odd the event is."""

    score: float
    surprisal_nats: float
    too_predictable: float
    reasons: list[Reason]


class FakeOrder(msgspec.Struct, gc=False):
    """Of an order, by a model without labels."""

    score: float
    probability: None = None


class Prediction(msgspec.Struct, gc=False):
    """The value of a prediction, fields in the order of the schema."""

    schema: str
    user_id: str
    event_id: str
    event_time_ms: int
    source: Source
    session: Session
    model: Model
    next_action: dict[str, float]
    next_category: list[Category]
    purchase_probability: float
    churn_probability: float
    churn_horizon_s: int
    median_gap_s: float
    anomaly: Anomaly
    fake_order: FakeOrder | None = None
    user_vector: None = None


@dataclass(slots=True)
class Folded:
    """A click between fold and model."""

    click: Click
    row: UserRow
    seen: Any
    window_before: bytes


decode = msgspec.json.Decoder(Click).decode
_encode = msgspec.json.Encoder().encode


class StockClicks:
    """The work on the events of one topic.

    Args:
        topic_id: 16 bytes.
        source: CloudEvents source.
    """

    def __init__(self, artefact: Artefact, topic: str, topic_id: bytes, source: str):
        self.topic, self.topic_id = topic, base64.urlsafe_b64encode(topic_id).decode().rstrip("=")
        self._epoch = topic_id[:8]
        self._format = RowFormat(len(artefact.actions), artefact.state_width)
        self._model = OneRowModel(artefact)
        self._model_name = Model(artefact.name, artefact.version)
        self._horizon_s = int(artefact.churn_horizon_s)
        self._actions = artefact.actions.names
        self._action_codes = {name: code for code, name in enumerate(self._actions)}
        self._names = dict(zip(artefact.categories.codes.tolist(), artefact.categories.names, strict=True))
        self._codes: dict[str, int] = {}
        self._headers = {
            "ce_specversion": b"1.0",
            "ce_type": b"foreclick.prediction.v1",
            "ce_source": source.encode(),
            "content-type": b"application/json",
        }

    def fold(self, click: Click, raw: bytes | None, partition: int, offset: int) -> Folded | None:
        """Apply a click to the user's stored row; None when it is a repeat or too late."""
        row = self._format.new() if raw is None else self._format.unpack(raw)
        name = click.event_id or f"{self.topic_id}/{partition}/{offset}"
        event_hash = xxhash.xxh3_64_intdigest(name.encode()) or 1
        if is_repeat(row, event_hash) or is_late(row, click.event_time_ms):
            return None
        window_before = row.window_categories
        category = self._code(click.category_id)
        if category not in self._names and click.category_id:
            self._names[category] = click.category_id
        seen = advance(
            row,
            action=self._action_codes.get(click.action, len(self._actions) - 1),
            category=category,
            item=self._code(click.item_id),
            price=click.price,
            event_time_ms=click.event_time_ms,
            event_hash=event_hash,
            offset=offset,
            epoch=self._epoch,
        )
        return Folded(click, row, seen, window_before)

    def score(self, folded: Folded) -> Answer:
        """Advance the state vector and predict; inside ``torch.inference_mode``."""
        return self._model.step(folded.row, folded.seen, folded.window_before)

    def pack(self, folded: Folded) -> bytes:
        """The row to store."""
        return self._format.pack(folded.row)

    def render(
        self, folded: Folded, answer: Answer, partition: int, offset: int
    ) -> tuple[bytes, dict[str, bytes]]:
        """The prediction's value and headers."""
        click, row, names = folded.click, folded.row, self._names
        nats = [round(term, 6) for term in answer.terms]
        reasons = [Reason(code, value) for code, value in zip(_REASONS, nats, strict=True) if value]
        reasons.sort(key=_nats, reverse=True)
        value = _encode(
            Prediction(
                "foreclick.prediction.v1",
                click.user_id,
                click.event_id or f"{self.topic_id}/{partition}/{offset}",
                click.event_time_ms,
                Source(self.topic, partition, offset),
                Session(row.session_index, row.session_events),
                self._model_name,
                {name: round(p, 6) for name, p in zip(self._actions, answer.next_action, strict=True)},
                [Category(names[code], round(p, 6)) for code, p in answer.next_category if code in names],
                round(answer.purchase_probability, 6),
                round(answer.churn_probability, 6),
                self._horizon_s,
                round(min(answer.median_gap_s, MAX_GAP_S), 3),
                Anomaly(
                    round(answer.anomaly_score, 6),
                    round(sum(nats), 6),
                    round(answer.too_predictable, 6),
                    reasons,
                ),
                FakeOrder(round(answer.anomaly_score, 6)) if click.action == "purchase" else None,
            )
        )
        time = datetime.datetime.fromtimestamp(click.event_time_ms / 1000, datetime.UTC)
        headers = {
            **self._headers,
            "ce_id": f"{self.topic_id}/{partition}/{offset}/prediction/{click.user_id}".encode(),
            "ce_time": (time.isoformat(timespec="milliseconds")[:-6] + "Z").encode(),
            "ce_subject": click.user_id.encode(),
        }
        return value, headers

    def _code(self, name: str | None) -> int:
        if not name:
            return 0
        code = self._codes.get(name)
        if code is None:
            code = self._codes[name] = (xxhash.xxh3_64_intdigest(name.encode()) & 0xFFFFFFFF) or 1
        return code


def _nats(reason: Reason) -> float:
    return reason.nats
