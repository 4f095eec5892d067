"""Rounds: micro-batches of several partitions that are folded, scored and rendered together.

An array operation costs nearly the same for one partition's fifteen events as for a hundred and twenty of eight, so
partitions that wait for the same model share every one. No bit of a result depends on who shares the round; what a
partition remembers and where it writes stay its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, cast

import numpy as np

from models.churn import ReturnCurves
from models.vocabulary import ActionVocabulary
from stream.churn_alerts import ChurnAlertRenderer
from stream.event_columns import NameCodes, columns_of
from stream.events import Event
from stream.insistence import insistent_visits
from stream.model_step import ServedModel, part_of
from stream.moments import Moment
from stream.outputs import PredictionRenderer
from stream.rows import RowLayout, fingerprint_of
from stream.scoring import ClicksRequest
from stream.sessions import Folded, FoldRules, fold, fold_windows
from stream.silence_fold import Found, Part, fold_silences
from stream.stage import Message, Rendered, Row
from stream.user_news import UserLevels, UserNews
from stream.user_vectors import UserVectors


@dataclass(frozen=True, slots=True)
class ClicksModel:
    """The model in use, with what the clicks stage makes of it.

    Attributes:
        alerts: None where churn is not looked for.
        vectors: None where vectors have no topic of their own.
    """

    served: ServedModel
    layout: RowLayout
    fingerprint: np.uint64
    renderer: PredictionRenderer
    alerts: ChurnAlertRenderer | None
    vectors: UserVectors | None = None

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
class FoldedRound:
    """N events of R requests upon B rows, M of them applied.

    Args:
        model: the one that was in use when the fold began: it alone scores and renders this round.
        row_ends, event_ends: (R,) where each request's rows and events end.
        state, window_category, last_ms, position: (B, ...) of the rows before the fold.
        stale: rows whose state vector another model made, with the events of their windows: they are rebuilt first.
        names: a list a request, rows to remember names by.
    """

    model: ClicksModel
    requests: Sequence[ClicksRequest]
    row_ends: np.ndarray
    event_ends: np.ndarray
    rows: np.ndarray
    folded: Folded
    state: np.ndarray
    window_category: np.ndarray
    last_ms: np.ndarray
    position: np.ndarray
    stale: tuple[np.ndarray, dict[str, np.ndarray]] | None
    names: list[list[Row]]

    def events(self) -> list[Event]:
        """The N events."""
        return list(chain.from_iterable(request.decoded.events for request in self.requests))

    def offsets(self) -> np.ndarray:
        """(N,) of the events in their partitions of the source."""
        return np.concatenate([request.decoded.offsets for request in self.requests])

    def partitions(self) -> np.ndarray:
        """(N,) of the source."""
        counts = np.diff(self.event_ends, prepend=0)
        return np.repeat([request.partition for request in self.requests], counts)


@dataclass(frozen=True, slots=True)
class _Silences:
    """``stream.silence_fold.Deadlines`` of a round."""

    renderer: ChurnAlertRenderer
    folded: FoldedRound
    scores: Any

    def least(self, events: np.ndarray) -> np.ndarray:
        return self._curves(events).least(self.renderer.threshold)

    def after(self, events: np.ndarray) -> Found:
        return self._found(self._curves(events))

    def carried(self, rows: np.ndarray) -> Found:
        gaps = self.folded.model.served.engine.gaps(self.folded.state[rows])
        return self._found(ReturnCurves(self.renderer.horizon_s, gaps.parameters()))

    def _curves(self, events: np.ndarray) -> ReturnCurves:
        odds, gaps = self.renderer.odds, self.scores.gap_mixture[events]
        base = None if odds is None else self.scores.return_base[events]
        return ReturnCurves(self.renderer.horizon_s, gaps.parameters(), odds, base)

    def _found(self, curves: ReturnCurves) -> Found:
        found_s = curves.deadlines(self.renderer.threshold)
        chance = curves.chance(np.maximum(found_s, 1).astype(np.float64))
        return found_s, np.rint(chance * 1e6).astype(np.int64)


class ClicksRounds:
    """What requests of several partitions go through together; implements ``stream.engine.scorer.Together``.

    Args:
        in_use: the model that the next round is scored with.
        of_model: what the clicks stage makes of a model.
        topic_id: 16 bytes, of the source.
        user_vectors: whether predictions hold them.
        every: a prediction an event, or only one for the last of each user in a micro-batch.
        levels: what is told of users where the second stage wants to hear of them.
    """

    def __init__(
        self,
        *,
        in_use: Callable[[], ServedModel],
        of_model: Callable[[ServedModel], ClicksModel],
        topic_id: bytes,
        rules: FoldRules,
        codes: NameCodes,
        predictions_topic: str,
        alerts_topic: str,
        every: bool,
        user_vectors: bool,
        levels: UserLevels,
    ):
        self._in_use, self._of_model = in_use, of_model
        self._model = of_model(in_use())
        self._epoch = topic_id[:8]
        self._rules, self._codes = rules, codes
        self._predictions_topic, self._alerts_topic = predictions_topic, alerts_topic
        self._every, self._user_vectors, self._levels = every, user_vectors, levels
        # Of all partitions: a code keeps the name under which it was first met.
        self._names: dict[int, str] = {}

    # ------------------------------------------------------------------ step 4

    def fold(self, requests: list[ClicksRequest]) -> FoldedRound:
        """Unpack the rows, find out which are another model's, and apply the events in offset order."""
        if self._in_use() is not self._model.served:
            self._model = self._of_model(self._in_use())
        model = self._model
        raws = list(chain.from_iterable(request.raws() for request in requests))
        unpacked = model.layout.unpack(raws)
        row_ends = np.cumsum([len(request.rows) for request in requests])
        event_ends = np.cumsum([len(request.decoded.events) for request in requests])
        starts = row_ends - [len(request.rows) for request in requests]
        columns = columns_of(
            list(chain.from_iterable(request.decoded.events for request in requests)),
            np.concatenate([r.decoded.slots + start for r, start in zip(requests, starts, strict=True)]),
            np.concatenate([request.decoded.offsets for request in requests]),
            np.concatenate([request.decoded.replayed for request in requests]),
            model.actions,
            self._codes,
            [prefix for r in requests for prefix in repeat(r.source_prefix, len(r.decoded.events))],
            model.extras,
        )
        stale_rows = np.flatnonzero(
            (unpacked["fingerprint"] != model.fingerprint) & (unpacked["window_count"] > 0)
        )
        stale = None
        if len(stale_rows):
            stale = self._rebuild(unpacked, raws, stale_rows, requests, row_ends)
        # Copies of what stood before the fold. (ascontiguousarray would keep the odd stride of a single row.)
        state = unpacked["state"].copy()
        window_category = unpacked["w_category"].copy()
        last_ms, position = unpacked["last_ms"].copy(), unpacked["position"].copy()
        times_ms = [request.now_ms for request in requests if request.now_ms is not None]
        now_ms = max(times_ms) if times_ms else None
        folded = fold(unpacked, columns, self._rules, now_ms, self._epoch, len(model.actions))
        names = self._learn(requests, folded, columns.category, event_ends)
        return FoldedRound(
            model,
            requests,
            row_ends,
            event_ends,
            unpacked,
            folded,
            state,
            window_category,
            last_ms,
            position,
            stale,
            names,
        )

    def _learn(
        self, requests: Sequence[ClicksRequest], folded: Folded, category: np.ndarray, event_ends: np.ndarray
    ) -> list[list[Row]]:
        """What each partition has to remember of this round: the model, and names of categories new to it."""
        learned: list[list[Row]] = []
        ends = np.searchsorted(folded.applied, event_ends)
        start = event_start = 0
        for request, end, event_end in zip(requests, ends.tolist(), event_ends.tolist(), strict=True):
            applied = folded.applied[start:end]
            rows: list[Row] = []
            if len(applied) or request.decoded.waited_for:
                rows = request.names.meet(self._model.served.artefact)
                rows += request.names.learn(category[applied], applied - event_start, request.decoded.events)
                request.names.tell(self._names)
            learned.append(rows)
            start, event_start = end, event_end
        return learned

    def _rebuild(
        self,
        rows: np.ndarray,
        raws: list[bytes | None],
        stale: np.ndarray,
        requests: Sequence[ClicksRequest],
        row_ends: np.ndarray,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The events of the windows of rows that another model wrote, whose actions get this one's codes here."""
        model = self._model
        alike = [request.names.speak_alike(model.actions) for request in requests]
        of_model: dict[tuple[int, int], list[int]] = {}
        for place, number in zip(
            stale.tolist(), np.searchsorted(row_ends, stale, side="right").tolist(), strict=True
        ):
            if not alike[number]:
                of_model.setdefault((number, fingerprint_of(cast(bytes, raws[place]))), []).append(place)
        for (number, fingerprint), places in of_model.items():
            codes = requests[number].names.action_codes(fingerprint, model.actions)
            rows[places] = model.layout.upgraded([cast(bytes, raws[place]) for place in places], codes)
        session_gap_ms = self._rules.session_gap_ms
        return stale, fold_windows(rows[stale], model.layout, session_gap_ms, len(model.extras))

    # ------------------------------------------------------------------ step 5

    def weight(self, folded: FoldedRound) -> int:
        """Events that the model goes through, those of rebuilt windows included."""
        return len(folded.folded.applied) + (0 if folded.stale is None else len(folded.stale[1]["row"]))

    def step(self, folded: FoldedRound) -> Any:
        """The model's answer to all events of the round: a ``models.micro_batch.StepResult``."""
        engine = folded.model.served.engine
        if folded.stale is not None:
            rows, columns = folded.stale
            folded.state[rows] = engine.rebuild(len(rows), columns)
        return engine.step(folded.state, folded.window_category, folded.folded.columns)

    # ------------------------------------------------------------------ step 6

    def render(self, folded: FoldedRound, scores: Any) -> list[Rendered]:
        """Rows, predictions and dead letters of each request."""
        applied, columns = folded.folded.applied, folded.folded.columns
        alerts, missed, said_before = self._alerts(folded, scores)
        touched = np.union1d(columns["row"], missed)
        folded.rows["state"] = scores.state
        folded.rows["fingerprint"][touched] = folded.model.fingerprint
        packed = folded.model.layout.pack(
            folded.rows[touched] if len(touched) < len(folded.rows) else folded.rows
        )
        chosen = np.arange(len(applied)) if self._every else last_of_each(columns["row"])
        predictions = self._predict(folded, scores, chosen)
        lasts = last_of_each(columns["row"]) if folded.model.vectors else np.zeros(0, np.int64)
        vectors = self._vectors(folded, scores, lasts)

        row_starts = np.append(0, folded.row_ends[:-1])
        event_starts = np.append(0, folded.event_ends[:-1])
        packed_at = np.searchsorted(touched, np.append(row_starts, folded.row_ends[-1])).tolist()
        bounds = np.append(event_starts, folded.event_ends[-1])
        applied_at = np.searchsorted(applied, bounds)
        predicted_at = np.searchsorted(chosen, applied_at).tolist()
        vector_at = np.searchsorted(lasts, applied_at).tolist()
        slots = (touched - np.repeat(row_starts, np.diff(packed_at))).tolist()
        times_ms = columns["event_time_ms"]
        news = self._news(folded, scores)
        of_items = any(request.tells_of_items for request in folded.requests)
        insistent = insistent_visits(columns) if of_items else np.zeros(len(applied), np.bool_)
        rendered: list[Rendered] = []
        for number, request in enumerate(folded.requests):
            here = slice(packed_at[number], packed_at[number + 1])
            mine = slice(int(bounds[number]), int(bounds[number + 1]))
            here_applied = slice(applied_at[number], applied_at[number + 1])
            times = times_ms[here_applied]
            groups = request.groups(
                applied[here_applied] - bounds[number],
                None if news is None else news.between(here_applied.start, here_applied.stop),
                gap_ms=columns["gap_ms"][here_applied],
                session_position=columns["session_position"][here_applied],
                insistent=insistent[here_applied],
            )
            rendered.append(
                request.work.rendered(
                    request.decoded,
                    rows=zip(slots[here], packed[here], strict=True),
                    names=folded.names[number],
                    predictions={
                        self._predictions_topic: predictions[predicted_at[number] : predicted_at[number + 1]]
                    },
                    vectors=vectors[vector_at[number] : vector_at[number + 1]],
                    alerts={self._alerts_topic: [message for _, message in alerts[number]]},
                    alert_counts=Counter(kind for kind, _ in alerts[number]),
                    groups=groups,
                    outcome=folded.folded.outcome[mine],
                    late_applied=folded.folded.late_applied[mine],
                    watermark_ms=max(int(times.max()) if len(times) else 0, request.watermark_ms),
                    said_before=said_before[number],
                    unknown_actions=len(self._codes.unknown_actions),
                )
            )
        return rendered

    def _news(self, folded: FoldedRound, scores: Any) -> UserNews | None:
        """What is out of the ordinary among the applied events, where a second stage wants to hear of it."""
        if not any(request.tells_of_users for request in folded.requests):
            return None
        columns, last_ms = folded.folded.columns, folded.folded.last_ms
        return self._levels.news(columns, last_ms, scores, folded.model.served.artefact.purchase_code)

    def _alerts(
        self, folded: FoldedRound, scores: Any
    ) -> tuple[list[list[tuple[str, Message]]], np.ndarray, Sequence[Moment | None]]:
        """What is said of silences.

        Returns:
            Kind and message of all that each request says; the rows without events that this changed; and the moment
            before which each has said all timers.
        """
        renderer = folded.model.alerts
        columns = folded.folded.columns
        if renderer is None:
            for name in ("silence_s", "return_millionths", "said"):
                folded.rows[name][columns["row"]] = 0
            nothing = [None] * len(folded.requests)
            return [[] for _ in folded.requests], np.zeros(0, np.int64), nothing
        offset = folded.offsets()[folded.folded.applied]
        said, missed, reached = fold_silences(
            folded.rows,
            folded.last_ms,
            folded.position,
            columns,
            folded.folded.last_ms,
            offset,
            _parts(folded),
            _Silences(renderer, folded, scores),
        )
        return (
            [
                list(zip([one.kind for one in some], renderer.messages(some, request.partition), strict=True))
                for some, request in zip(said, folded.requests, strict=True)
            ],
            missed,
            reached,
        )

    def _vectors(self, folded: FoldedRound, scores: Any, lasts: np.ndarray) -> Sequence[Message]:
        """The vector of each user after the last of the applied events, in the order of these."""
        if folded.model.vectors is None or not len(lasts):
            return []
        indices = folded.folded.applied[lasts]
        events = folded.events()
        return folded.model.vectors.messages(
            [events[index].user_id for index in indices.tolist()],
            folded.folded.columns["event_time_ms"][lasts],
            folded.partitions()[indices],
            folded.offsets()[indices],
            scores.user_vector[lasts],
        )

    def _predict(self, folded: FoldedRound, scores: Any, chosen: np.ndarray) -> list[Message]:
        """A message for each chosen one of the applied events."""
        if not len(chosen):
            return []
        columns, every = folded.folded.columns, len(chosen) == len(folded.folded.applied)
        indices = folded.folded.applied[chosen].tolist()
        events, offsets, partitions = folded.events(), folded.offsets(), folded.partitions()
        keys = list(chain.from_iterable(request.decoded.event_keys() for request in folded.requests))
        if len(indices) < len(events):
            events, keys = [events[i] for i in indices], [keys[i] for i in indices]
            offsets, partitions = offsets[indices], partitions[indices]
        if not every:
            scores = part_of(scores, chosen)
        values, headers = folded.model.renderer.render(
            [event.user_id for event in events],
            [event.event_id for event in events],
            columns["event_time_ms"][chosen],
            partitions,
            offsets,
            columns["session_index"][chosen],
            columns["session_position"][chosen],
            scores,
            self._names,
            scores.user_vector if self._user_vectors else None,
            columns["action"][chosen] == folded.model.served.artefact.purchase_code,
        )
        return list(zip(keys, values, headers, strict=True))


def _parts(folded: FoldedRound) -> list[Part]:
    """What each request brings to the fold of silences."""
    applied = folded.folded.applied
    applied_ends = np.searchsorted(applied, folded.event_ends).tolist()
    parts: list[Part] = []
    row_start = event_start = start = 0
    ends = zip(
        folded.requests, folded.row_ends.tolist(), folded.event_ends.tolist(), applied_ends, strict=True
    )
    for request, row_end, event_end, end in ends:
        decoded = request.decoded
        ended = {}
        if decoded.ended:
            records = np.asarray(decoded.event_records)[applied[start:end] - event_start]
            ended = {slot: int(np.searchsorted(records, index)) for slot, index in decoded.ended.items()}
        rows, events = slice(row_start, row_end), slice(start, end)
        parts.append(
            Part(
                decoded.keys,
                rows,
                events,
                request.watermark_ms,
                ended,
                request.said_before,
                decoded.bound,
                decoded.waiting,
            )
        )
        row_start, event_start, start = row_end, event_end, end
    return parts


def last_of_each(rows: np.ndarray) -> np.ndarray:
    """Indices of the last event of each row, ascending."""
    _, first_from_end = np.unique(rows[::-1], return_index=True)
    return np.sort(len(rows) - 1 - first_from_end)
