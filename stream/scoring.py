"""The clicks stage: records and rows in, predictions, dead letters and new rows out.

What stage.py asks of a stage, for clicks. The order inside a micro-batch is the order of offsets; a tombstone ends a
user's row and what follows begins a blank one, so a micro-batch may hold two lives of one user.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from models.vocabulary import ActionVocabulary
from stream.dead_letters import REPLAYED_HEADER, dead_letter
from stream.events import Adapt, Event, Rejection, decode_events, unknown_fields
from stream.model_step import ScoreRequest, ServedModel, part_of
from stream.outputs import PredictionRenderer
from stream.partition_names import PartitionNames
from stream.rows import RowLayout, fingerprint_of
from stream.sessions import DUPLICATE, FUTURE, LATE, FoldRules, NameCodes, columns_of, fold, rebuild_columns
from stream.stage import Message, Rendered, Row


@dataclass(frozen=True, slots=True)
class PartitionModel:
    """The model in use, with what one partition makes of it."""

    served: ServedModel
    layout: RowLayout
    fingerprint: np.uint64
    renderer: PredictionRenderer

    @property
    def actions(self) -> ActionVocabulary:
        """The vocabulary that action codes of new rows are from."""
        actions: ActionVocabulary = self.served.artefact.actions
        return actions

    @property
    def extras(self) -> tuple[str, ...]:
        """The numbers in ``extra`` that the model declares."""
        extras: tuple[str, ...] = self.served.artefact.features.extras
        return extras


@dataclass(slots=True)
class DecodedClicks:
    """Events, rejections and slots of one micro-batch; a slot is one life of one user."""

    records: Sequence[Any]
    events: list[Event]
    event_records: list[int]
    slots: np.ndarray
    keys: list[bytes]
    fresh: list[int]
    rejected: list[tuple[int, Rejection]]
    erased: set[bytes]
    replayed: np.ndarray


@dataclass(slots=True)
class FoldedClicks:
    """Rows after the fold, what the model is asked, and names to remember.

    ``model`` is the one that was in use when the fold began: it alone scores and renders this micro-batch.
    """

    model: PartitionModel
    decoded: DecodedClicks
    rows: np.ndarray
    folded: Any
    request: ScoreRequest
    names: list[Row]


@dataclass(slots=True)
class Counts:
    """What a micro-batch tells the metrics, once.

    ``unknown_fields`` are those of one record in the batch: enough to find every producer that sends them.
    """

    events: int
    duplicates: int
    late: int
    erased: int
    dead_letters: dict[str, int]
    predictions: int
    unknown_actions: int
    unknown_fields: set[str]
    timestamps_ms: np.ndarray


class ClicksWork:
    """The clicks stage of one partition; implements ``stream.stage.Work``.

    Between two micro-batches another model may come into use; rows of other models are then read by their own
    vocabulary, and their state vectors rebuilt, as their users come by.

    Args:
        in_use: the model that the next micro-batch is scored with.
        of_partition: what this partition makes of a model.
        score: hands a request to the model and waits: (request) -> StepResult.
        observe: told of each committed micro-batch, with the times of its receipt and its commit, Unix seconds.
    """

    def __init__(
        self,
        *,
        topic: str,
        topic_id: bytes,
        partition: int,
        predictions_topic: str,
        dead_letters_topic: str,
        in_use: Callable[[], ServedModel],
        of_partition: Callable[[ServedModel], PartitionModel],
        names: PartitionNames,
        rules: FoldRules,
        codes: NameCodes,
        score: Callable[[ScoreRequest], Awaitable[Any]],
        adapt: Adapt | None,
        every: bool,
        user_vectors: bool,
        observe: Callable[[Counts, float, float], None],
    ):
        self._topic, self._partition = topic, partition
        self._predictions_topic, self._dead_letters_topic = predictions_topic, dead_letters_topic
        self._in_use, self._of_partition = in_use, of_partition
        self._model = of_partition(in_use())
        self._epoch = topic_id[:8]
        self._source_prefix = f"{readable_id(topic_id)}/{partition}".encode()
        self._names, self._rules, self._codes = names, rules, codes
        self._score = score
        self._adapt = adapt
        self._every, self._user_vectors = every, user_vectors
        self._observe = observe

    # ------------------------------------------------------------------ step 2

    def decode(self, records: Sequence[Any]) -> DecodedClicks:
        keys = [record.key for record in records]
        decoded = decode_events(keys, [record.value for record in records], self._adapt)
        replayed = _replayed(records)
        if set(map(type, decoded)) == {Event}:
            # Nearly every micro-batch: nothing rejected, nobody erased.
            slot_of: dict[bytes, int] = {}
            slots = [slot_of.setdefault(key, len(slot_of)) for key in keys]
            indices = list(range(len(records)))
            events = cast(list[Event], decoded)
            return DecodedClicks(
                records, events, indices, np.array(slots, np.int32), list(slot_of), [], [], set(), replayed
            )
        return self._sorted_out(records, decoded, replayed)

    def _sorted_out(self, records: Sequence[Any], decoded: list[Any], replayed: np.ndarray) -> DecodedClicks:
        """Events, rejections and tombstones apart; each life of a user in a slot of its own."""
        event_records: list[int] = []
        slots: list[int] = []
        keys: list[bytes] = []
        slot_of: dict[bytes, int] = {}
        fresh: list[int] = []
        rejected: list[tuple[int, Rejection]] = []
        erased: set[bytes] = set()
        for index, event in enumerate(decoded):
            key = records[index].key
            if type(event) is Event:
                slot = slot_of.get(key)
                if slot is None:
                    slot = slot_of[key] = len(keys)
                    keys.append(key)
                    if key in erased:
                        fresh.append(slot)  # this life began after a tombstone: the stored row is another's
                event_records.append(index)
                slots.append(slot)
            elif event is None:
                slot_of.pop(key, None)
                erased.add(key)
            else:
                rejected.append((index, event))
        events = [decoded[index] for index in event_records]
        # A user whose last word is a tombstone is erased; one who came back after it has a slot.
        erased = {key for key in erased if key not in slot_of}
        return DecodedClicks(
            records,
            events,
            event_records,
            np.array(slots, np.int32),
            keys,
            fresh,
            rejected,
            erased,
            replayed[event_records],
        )

    # ------------------------------------------------------------------ step 4

    def fold(self, decoded: DecodedClicks, rows: list[bytes | None], now_ms: int | None) -> FoldedClicks:
        if self._in_use() is not self._model.served:
            self._model = self._of_partition(self._in_use())
        model = self._model
        raws = list(rows)
        for slot in decoded.fresh:
            raws[slot] = None
        unpacked = model.layout.unpack(raws)
        offsets = np.array([decoded.records[i].offset for i in decoded.event_records], np.int64)
        columns = columns_of(
            decoded.events,
            decoded.slots,
            offsets,
            decoded.replayed,
            model.actions,
            self._codes,
            self._source_prefix,
            model.extras,
        )
        stale_rows = np.flatnonzero(
            (unpacked["fingerprint"] != model.fingerprint) & (unpacked["window_count"] > 0)
        )
        stale = self._rebuild(model, unpacked, raws, stale_rows) if len(stale_rows) else None
        # Copies of what stood before the fold. (ascontiguousarray would keep the odd stride of a single row.)
        state = unpacked["state"].copy()
        window_category = unpacked["w_category"].copy()
        folded = fold(unpacked, columns, self._rules, now_ms, self._epoch, len(model.actions))
        applied = folded.applied
        names = self._names.meet(model.served.artefact) if len(applied) else []
        names += self._names.learn(columns.category[applied], applied, decoded.events)
        request = ScoreRequest(model.served, state, window_category, folded.columns, stale)
        return FoldedClicks(model, decoded, unpacked, folded, request, names)

    def _rebuild(
        self, model: PartitionModel, rows: np.ndarray, raws: list[bytes | None], stale: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The events of the windows of rows that another model wrote, whose actions get this one's codes here."""
        if not self._names.speak_alike(model.actions):
            of_model: dict[int, list[int]] = {}
            for place in stale.tolist():
                of_model.setdefault(fingerprint_of(cast(bytes, raws[place])), []).append(place)
            for fingerprint, places in of_model.items():
                codes = self._names.action_codes(fingerprint, model.actions)
                rows[places] = model.layout.upgraded([cast(bytes, raws[place]) for place in places], codes)
        blank, events = rebuild_columns(rows[stale], model.layout, len(model.extras))
        rules = FoldRules(self._rules.session_gap_ms, late_limit_ms=2**62, future_limit_ms=2**62)
        return stale, fold(blank, events, rules, None, self._epoch, len(model.actions)).columns

    # ------------------------------------------------------------------ step 5

    async def score(self, folded: FoldedClicks) -> Any:
        return await self._score(folded.request) if folded.request.events else None

    # ------------------------------------------------------------------ step 6

    def render(self, folded: FoldedClicks, scores: Any) -> Rendered:
        decoded, outcome = folded.decoded, folded.folded.outcome
        applied = folded.folded.applied
        messages: dict[str, list[Message]] = {}
        rows: dict[bytes, bytes | None] = dict.fromkeys(decoded.erased)
        predictions = 0
        if len(applied):
            touched = np.unique(folded.request.columns["row"])
            folded.rows["state"] = scores.state
            folded.rows["fingerprint"][touched] = folded.model.fingerprint
            packed = folded.model.layout.pack(
                folded.rows[touched] if len(touched) < len(folded.rows) else folded.rows
            )
            for slot, raw in zip(touched.tolist(), packed, strict=True):
                rows[decoded.keys[slot]] = raw  # of two lives in one batch the later slot wins
            for key in decoded.erased:
                rows[key] = None
            predicted = self._predict(folded, scores, applied)
            messages[self._predictions_topic] = predicted
            predictions = len(predicted)
        dead = self._dead_letters(decoded, outcome)
        if dead:
            messages[self._dead_letters_topic] = [letter for _, letter in dead]
        reasons: dict[str, int] = {}
        for reason, _ in dead:
            reasons[reason] = reasons.get(reason, 0) + 1
        times = folded.request.columns["event_time_ms"]
        counts = Counts(
            events=len(decoded.records),
            duplicates=int((outcome == DUPLICATE).sum()),
            late=int(folded.folded.late_applied.sum()),
            erased=len(decoded.erased),
            dead_letters=reasons,
            predictions=predictions,
            unknown_actions=len(self._codes.unknown_actions),
            unknown_fields=unknown_fields(decoded.records[-1].value or b"") if decoded.records else set(),
            timestamps_ms=np.array([record.timestamp for record in decoded.records], np.int64),
        )
        return Rendered(
            messages, [*rows.items(), *folded.names], int(times.max()) if len(times) else 0, counts
        )

    def _predict(self, folded: FoldedClicks, scores: Any, applied: np.ndarray) -> list[Message]:
        decoded, columns = folded.decoded, folded.request.columns
        chosen = slice(None) if self._every else last_of_each(columns["row"])
        if not self._every:
            applied, scores = applied[chosen], part_of(scores, chosen)
        indices = applied.tolist()
        events = [decoded.events[i] for i in indices]
        records = [decoded.records[decoded.event_records[i]] for i in indices]
        values, headers = folded.model.renderer.render(
            [event.user_id for event in events],
            [event.event_id for event in events],
            columns["event_time_ms"][chosen],
            np.array([record.offset for record in records], np.int64),
            columns["session_index"][chosen],
            columns["session_position"][chosen],
            scores,
            self._names.categories,
            scores.user_vector if self._user_vectors else None,
        )
        return list(zip([record.key for record in records], values, headers, strict=True))

    def _dead_letters(self, decoded: DecodedClicks, outcome: np.ndarray) -> list[tuple[str, Message]]:
        untimely = [
            (decoded.event_records[i], self._untimely(decoded.events[i], int(outcome[i])))
            for i in np.flatnonzero((outcome == LATE) | (outcome == FUTURE)).tolist()
        ]
        rejected = sorted([*decoded.rejected, *untimely], key=lambda pair: pair[0])
        letters: list[tuple[str, Message]] = []
        for index, why in rejected:
            record = decoded.records[index]
            key, value, headers = dead_letter(
                self._topic,
                self._partition,
                record.offset,
                record.key,
                record.value,
                why.reason,
                why.message,
                record.headers,
            )
            letters.append((why.reason, (key, value, headers)))
        return letters

    def _untimely(self, event: Event, outcome: int) -> Rejection:
        if outcome == LATE:
            limit_s = self._rules.late_limit_ms // 1000
            return Rejection(
                "late", f"event_time_ms {event.event_time_ms} is over {limit_s} s before the user's last"
            )
        limit_s = self._rules.future_limit_ms // 1000
        return Rejection(
            "future", f"event_time_ms {event.event_time_ms} is over {limit_s} s ahead of the clock"
        )

    # ------------------------------------------------------------------ step 9

    def account(self, rendered: Rendered, received_s: float, committed_s: float) -> None:
        self._observe(rendered.counts, received_s, committed_s)


def _replayed(records: Sequence[Any]) -> np.ndarray:
    """Which records are dead letters sent again; nearly always none of a batch has any header at all."""
    if not any([record.headers for record in records]):  # noqa: C419 - a list is twice as fast here
        return np.zeros(len(records), np.bool_)
    return np.array(
        [any(name == REPLAYED_HEADER for name, _ in record.headers) for record in records], np.bool_
    )


def readable_id(topic_id: bytes) -> str:
    """A topic id as Kafka's own tools print it."""
    return base64.urlsafe_b64encode(topic_id).decode().rstrip("=")


def last_of_each(rows: np.ndarray) -> np.ndarray:
    """Indices of the last event of each row, ascending."""
    _, first_from_end = np.unique(rows[::-1], return_index=True)
    return np.sort(len(rows) - 1 - first_from_end)
