"""The clicks stage: records and rows in, predictions, dead letters and new rows out.

What stage.py asks of a stage, for clicks. The order inside a micro-batch is the order of offsets; a tombstone ends a
user's row and what follows begins a blank one, so a micro-batch may hold two lives of one user.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import numpy as np

from models.vocabulary import ActionVocabulary
from stream.dead_letters import REPLAYED_HEADER, dead_letter
from stream.events import Adapt, Event, Rejection, decode_events, unknown_fields
from stream.outputs import PredictionRenderer
from stream.rows import RowLayout
from stream.sessions import DUPLICATE, FUTURE, LATE, FoldRules, NameCodes, columns_of, fold, rebuild_columns
from stream.settings import Settings
from stream.stage import Message, Rendered, Row

NAME_KEY = b"\0c"  # + u32 code: the name of a category, so that predictions can name it after a restart
_CODE = struct.Struct("<I")
MAX_NAMES = 100_000  # a partition; later categories stay without a name and are left out of next_category


@dataclass(slots=True)
class ScoreRequest:
    """What a partition hands to the model: B rows and M events, see ``models.runtime.StepEngine.step``.

    ``stale`` are rows whose state vector another model made: they are rebuilt from their windows first.
    """

    state: np.ndarray
    window_category: np.ndarray
    columns: dict[str, np.ndarray]
    stale: tuple[np.ndarray, dict[str, np.ndarray]] | None = None

    @property
    def events(self) -> int:
        return len(self.columns["row"])


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
    """Rows after the fold, what the model is asked, and names of categories to remember."""

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


@dataclass
class CategoryNames:
    """Names of the categories that a partition has seen and the model's vocabulary does not hold."""

    vocabulary: Mapping[int, str]
    seen: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.all: dict[int, str] = {**self.vocabulary, **self.seen}

    def learn(self, codes: np.ndarray, places: np.ndarray, events: Sequence[Event]) -> list[Row]:
        """Remember the names of codes not seen before; the rows that make the changelog remember them too.

        Args:
            codes: of the categories, one for each place; 0 is none.
            places: indices into ``events``.
        """
        new = set(codes.tolist()) - self.all.keys() - {0}
        learned: list[Row] = []
        for code in sorted(new):
            name = events[places[int(np.argmax(codes == code))]].category_id
            if name is not None and len(self.all) < MAX_NAMES:
                self.all[code] = name
                learned.append((NAME_KEY + _CODE.pack(code), name.encode()))
        return learned

    @staticmethod
    def stored(entries: Iterable[tuple[bytes, bytes]]) -> dict[int, str]:
        """Names out of a store's reserved entries."""
        return {_CODE.unpack(key[len(NAME_KEY) :])[0]: value.decode() for key, value in entries}


class ClicksWork:
    """The clicks stage of one partition; implements ``stream.stage.Work``.

    Args:
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
        actions: ActionVocabulary,
        layout: RowLayout,
        fingerprint: int,
        renderer: PredictionRenderer,
        names: CategoryNames,
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
        self._actions, self._layout = actions, layout
        self._fingerprint = np.uint64(fingerprint)
        self._epoch = topic_id[:8]
        self._source_prefix = renderer.source_prefix.encode()
        self._renderer, self._names, self._rules, self._codes = renderer, names, rules, codes
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
        raws = list(rows)
        for slot in decoded.fresh:
            raws[slot] = None
        unpacked = self._layout.unpack(raws)
        offsets = np.array([decoded.records[i].offset for i in decoded.event_records], np.int64)
        columns = columns_of(
            decoded.events,
            decoded.slots,
            offsets,
            decoded.replayed,
            self._actions,
            self._codes,
            self._source_prefix,
        )
        # Copies of what stood before the fold. (ascontiguousarray would keep the odd stride of a single row.)
        state = unpacked["state"].copy()
        window_category = unpacked["w_category"].copy()
        stale_rows = np.flatnonzero(
            (unpacked["fingerprint"] != self._fingerprint) & (unpacked["window_count"] > 0)
        )
        stale = self._rebuild(unpacked, stale_rows) if len(stale_rows) else None
        folded = fold(unpacked, columns, self._rules, now_ms, self._epoch, len(self._actions.names))
        applied = folded.applied
        names = self._names.learn(columns.category[applied], applied, decoded.events)
        request = ScoreRequest(state, window_category, folded.columns, stale)
        return FoldedClicks(decoded, unpacked, folded, request, names)

    def _rebuild(self, rows: np.ndarray, stale: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        blank, events = rebuild_columns(rows[stale], self._layout)
        rules = FoldRules(self._rules.session_gap_ms, late_limit_ms=2**62, future_limit_ms=2**62)
        return stale, fold(blank, events, rules, None, self._epoch, len(self._actions.names)).columns

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
            folded.rows["fingerprint"][touched] = self._fingerprint
            packed = self._layout.pack(
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
        values, headers = self._renderer.render(
            [event.user_id for event in events],
            [event.event_id for event in events],
            columns["event_time_ms"][chosen],
            np.array([record.offset for record in records], np.int64),
            columns["session_index"][chosen],
            columns["session_position"][chosen],
            scores,
            self._names.all,
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


def clicks_work(
    settings: Settings,
    artefact: Any,
    *,
    topic: str,
    topic_id: bytes,
    partition: int,
    score: Callable[[ScoreRequest], Awaitable[Any]],
    seen_names: Mapping[int, str] | None = None,
    codes: NameCodes | None = None,
    adapt: Adapt | None = None,
    observe: Callable[[Counts, float, float], None] | None = None,
) -> ClicksWork:
    """The clicks stage of one partition, as the settings and the model want it: the worker's and the offline one.

    Args:
        artefact: ``models.registry.Artefact`` of the model in use.
        seen_names: category names that this partition's store remembers.
        codes: a cache of name codes that partitions may share.
    """
    vocabulary = dict(zip(artefact.categories.codes.tolist(), artefact.categories.names, strict=True))
    renderer = PredictionRenderer(
        artefact.name,
        artefact.version,
        artefact.actions.names,
        vocabulary,
        topic=topic,
        topic_id=readable_id(topic_id),
        partition=partition,
        churn_horizon_s=int(artefact.churn_horizon_s),
        source=f"/{settings.app_id}/{topic}",
    )
    return ClicksWork(
        topic=topic,
        topic_id=topic_id,
        partition=partition,
        predictions_topic=settings.predictions_topic,
        dead_letters_topic=settings.dead_letters_topic,
        actions=artefact.actions,
        layout=RowLayout(len(artefact.actions.names), artefact.state_width, artefact.window),
        fingerprint=artefact.fingerprint,
        renderer=renderer,
        names=CategoryNames(vocabulary, dict(seen_names or {})),
        rules=FoldRules(
            settings.session_gap_s * 1000, settings.late_limit_s * 1000, settings.future_limit_s * 1000
        ),
        codes=NameCodes() if codes is None else codes,
        score=score,
        adapt=adapt,
        every=settings.predictions == "every",
        user_vectors=settings.user_vectors,
        observe=observe or _tell_nobody,
    )


def _replayed(records: Sequence[Any]) -> np.ndarray:
    """Which records are dead letters sent again; nearly always none of a batch has any header at all."""
    if not any([record.headers for record in records]):  # noqa: C419 - a list is twice as fast here
        return np.zeros(len(records), np.bool_)
    return np.array(
        [any(name == REPLAYED_HEADER for name, _ in record.headers) for record in records], np.bool_
    )


def _tell_nobody(counts: Counts, received_s: float, committed_s: float) -> None: ...


def readable_id(topic_id: bytes) -> str:
    """A topic id as Kafka's own tools print it."""
    return base64.urlsafe_b64encode(topic_id).decode().rstrip("=")


def last_of_each(rows: np.ndarray) -> np.ndarray:
    """Indices of the last event of each row, ascending."""
    _, first_from_end = np.unique(rows[::-1], return_index=True)
    return np.sort(len(rows) - 1 - first_from_end)


def part_of(result: Any, events: slice | np.ndarray, rows: slice = slice(None)) -> Any:
    """A StepResult of some of its events and rows; hidden states are shared, as events refer to them by slot."""
    by_event = {
        entry.name: getattr(result, entry.name)[events]
        for entry in fields(result)
        if entry.name not in ("state", "hidden_state")
    }
    return replace(result, state=result.state[rows], **by_event)


class ModelStep:
    """Requests of several partitions through one step of the model, and apart again.

    Called by the scorer in the model's thread. Rows and events are concatenated; the step engine promises that no
    bit of a result depends on who shares the batch.
    """

    def __init__(self, engine: Any):
        self.engine = engine

    def __call__(self, requests: list[ScoreRequest]) -> list[Any]:
        for request in requests:
            if request.stale is not None:
                self._rebuild(request)
        if len(requests) == 1:
            only = requests[0]
            return [self.engine.step(only.state, only.window_category, only.columns)]
        state = np.concatenate([request.state for request in requests])
        window_category = np.concatenate([request.window_category for request in requests])
        row_ends = np.cumsum([len(request.state) for request in requests]).tolist()
        event_ends = np.cumsum([request.events for request in requests]).tolist()
        columns = {
            name: np.concatenate([request.columns[name] for request in requests])
            for name in requests[0].columns
            if name != "row"
        }
        columns["row"] = np.concatenate(
            [
                request.columns["row"] + (end - len(request.state))
                for request, end in zip(requests, row_ends, strict=True)
            ]
        ).astype(np.int32)
        merged = self.engine.step(state, window_category, columns)
        results, row, event = [], 0, 0
        for row_end, event_end in zip(row_ends, event_ends, strict=True):
            results.append(part_of(merged, slice(event, event_end), slice(row, row_end)))
            row, event = row_end, event_end
        return results

    def _rebuild(self, request: ScoreRequest) -> None:
        """Replace state vectors of another model by what this one makes of the rows' windows."""
        assert request.stale is not None
        rows, columns = request.stale
        blank = np.zeros((len(rows), request.state.shape[1]), np.float16)
        empty = np.zeros((len(rows), request.window_category.shape[1]), np.uint32)
        request.state[rows] = self.engine.step(blank, empty, columns).state
