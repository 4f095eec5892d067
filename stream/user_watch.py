"""Fake accounts, live: one user's orders, tempo and oddities, as the clicks stage tells them (stream/user_news.py).

    order    ─► orders of a week ─► at once? the same again? hardly looks?  ─┐
    tempo    ─► fast stretches   ─► haste                                    ├─► one score ─► at the threshold: an
    oddity   ─► oddities         ─► too predictable, surprising              │                alert, with its events
    labelled ─► what labelled users taught, of a model with a fake_order head┘
         all ─► the analyst's rules ───────────────────────────────────────────────────────► one broken: likewise

The score is that of ``models.fraud.own_terms``. Oddities count against how many a user has by chance, one event in 200
where the level is .995; they support other terms and flag nobody by themselves, since a model that does not fit a shop
finds everybody odd.

What a rule sees: orders are counted one by one. Events are counted in blocks of 16 of a session, by the user's count of
events from the first block that was told to the last. So a run of events is surely seen when it has 31 more than the
limit, and never when it has no more than the limit; a block that took longer than what is told neither begins nor ends
a run. A broken rule flags its user whatever the score.

A user's records come in the sequence of its partition, so nothing waits for others: an alert leaves with the event that
made it, however the records were cut into calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, ClassVar, Final, NamedTuple, cast

from models.fraud.crowds import excess_nats
from models.fraud.own_terms import OWN_TERMS, OwnScores, at_once, haste, plain_scores, same_again
from models.fraud.rules import RULES
from stream.alerts import Alert, severity_of
from stream.errors import ConfigurationError
from stream.group_detectors import USER, Fold, Group, GroupEvent
from stream.user_news import ODDITIES, ODDITY_EVERY, PACE_EVENTS, TEMPO_EVENTS, UserEvent
from stream.user_row import MAX_ROW_BYTES, MOST_MARKS, MOST_ORDERS, WINDOW, Odd, Order, Seen, UserRow

__all__ = ["KIND", "UserWatch", "countable"]

KIND: Final = "fake_account"
_HOUR_MS: Final = 3_600_000
_SHOWN_OF_REASON: Final = 8
_SHOWN: Final = 24
_MOST_REASONS: Final = 4
#: A term that says less than this is no reason.
_LEAST_NATS: Final = 2.0
#: What oddities may say at most.
_MOST_PREDICTABLE_NATS, _MOST_SURPRISE_NATS = 4.0, 2.0
#: What labelled users taught is sure of nobody.
_LEAST_CHANCE: Final = 1e-4
_BESIDE: Final = ("too_predictable", "surprising", "labelled")
_WITHIN: Final = {1_000: "a second", 60_000: "a minute", _HOUR_MS: "an hour", 24 * _HOUR_MS: "24 hours"}


class _Fastest(NamedTuple):
    """So many events took so long, and what tells it."""

    haste: float
    events: int
    took_ms: int
    seen: Sequence[Seen]


class _Terms(NamedTuple):
    """What a row shows: values by `OWN_TERMS`, nats by `_BESIDE`, and what the reasons are made of."""

    values: tuple[float, ...]
    beside: tuple[float, ...]
    fastest: _Fastest | None
    at_once: Sequence[Order]
    repeats: int
    again: Sequence[Order]


class _Reason(NamedTuple):
    code: str
    text: str
    numbers: Mapping[str, float]
    seen: Sequence[Seen]

    def as_dict(self) -> dict[str, Any]:
        """As the alert has it; ``events`` are source positions, partition/offset."""
        events = " ".join(f"{each.partition}/{each.offset}" for each in self.seen)
        return {"code": self.code, "text": self.text, **self.numbers, "events": events}


def countable(limits: Mapping[str, int]) -> Mapping[str, int]:
    """The limits of rules, if a row remembers enough to see them broken.

    Raises:
        ConfigurationError: it does not; the rule and the most that it can have are named.
    """
    for rule, limit in limits.items():
        most = (MOST_MARKS * TEMPO_EVENTS if RULES[rule][1] == "events" else MOST_ORDERS) - 1
        if limit > most:
            raise ConfigurationError(
                f"The rule {rule} has the limit {limit}; a worker remembers enough of a user for limits up to {most}. "
                f"Write {rule} = {most} or less in the file of FORECLICK_FRAUD__RULES, or leave the rule out."
            )
    return limits


@dataclass(frozen=True, slots=True)
class UserWatch:
    """A ``GroupDetector`` for users.

    Args:
        topic: that evidence names.
        limits: of the rules, as `countable` let them pass.
        threshold: score from which on a user is flagged.
        anomaly: level of the oddities that are told.
        scores: those of the model in use now.
    """

    kind: ClassVar = KIND
    group_types: ClassVar = frozenset({USER})
    max_row_bytes: ClassVar = MAX_ROW_BYTES

    topic: str
    limits: Mapping[str, int] = field(default_factory=dict)
    threshold: float = 0.99
    anomaly: float = 0.995
    scores: Callable[[], OwnScores] = plain_scores

    def fold(self, group: Group, row: bytes | None, events: Sequence[GroupEvent], watermark_ms: int) -> Fold:  # noqa: ARG002
        """Take the events one by one, and judge after each."""
        known, alerts = UserRow.of_row(row), list[Alert]()
        for event in cast(Sequence[UserEvent], events):
            if event.life_events < known.life:
                known = UserRow()
            known.take(event)
            if (alert := self._judged(known, event)) is not None:
                alerts.append(alert)
        if known.forget_ms <= watermark_ms:
            return Fold(None, alerts)
        return Fold(known.packed(), alerts, known.forget_ms)

    def erase(self, row: bytes, users: Collection[str]) -> bytes | None:
        """The row, but of a user whom a tombstone has named."""
        return None if UserRow.of_row(row).user_id in users else row

    def _judged(self, known: UserRow, event: UserEvent) -> Alert | None:
        if known.plain and self.scores().judge(known.life, *_plain_terms(known)).score < self.threshold:
            return None
        terms = self._terms(known)
        judged = self.scores().judge(known.life, terms.values, terms.beside)
        broken = self._broken(known)
        if judged.score < self.threshold and not broken:
            return None
        score = max(judged.score, self.threshold) if broken else judged.score
        reasons = [*self._reasons(known, terms, (*judged.nats, *terms.beside), 0 if broken else 1), *broken]
        now = Seen.of_event(event)
        seen = {(each.partition, each.offset): each for reason in reasons for each in reason.seen}
        seen.pop((event.partition, event.offset), None)
        return Alert(
            id=f"{KIND}/{USER}/{event.user_id}/{self.topic}/{event.partition}/{event.offset}",
            kind=KIND,
            subject_type=USER,
            subject=event.user_id,
            score=score,
            severity=severity_of(score),
            event_time_ms=event.event_time_ms,
            reasons=[reason.as_dict() for reason in reasons],
            evidence=[self._entry(event.user_id, each) for each in (now, *seen.values())][:_SHOWN],
            approximate=known.approximate,
        )

    def _terms(self, known: UserRow) -> _Terms:
        fastest = _fastest(known)
        most = known.most_orders(_HOUR_MS)
        repeats, again = known.ordered_again()
        values = {
            "haste": fastest.haste if fastest else 0.0,
            "orders_at_once": at_once(len(most)),
            "same_order_again": same_again(repeats) if repeats else 0.0,
            "hardly_looks": known.unlooked if known.orders else 0.0,
        }
        chance = (1.0 - self.anomaly) * known.life
        predictable = surprise = 0.0
        if known.predictable:
            predictable = excess_nats(len(known.predictable), max(0.5, chance / WINDOW))
        if known.surprising:
            surprise = excess_nats(len(known.surprising), max(0.5, chance / ODDITY_EVERY))
        labelled = -log(max(1.0 - known.labelled, _LEAST_CHANCE))
        beside = (min(predictable, _MOST_PREDICTABLE_NATS), min(surprise, _MOST_SURPRISE_NATS), labelled)
        return _Terms(tuple([values[code] for code in OWN_TERMS]), beside, fastest, most, repeats, again)

    @staticmethod
    def _reasons(known: UserRow, terms: _Terms, nats: tuple[float, ...], least: int) -> list[_Reason]:
        """The terms that say something, at least so many, what says most first."""
        fastest = terms.fastest or _Fastest(0.0, 0, 0, ())
        said: dict[str, tuple[str, Sequence[Seen]]] = {
            "haste": (f"{fastest.events} events within {fastest.took_ms / 1000:g} s", fastest.seen),
            "orders_at_once": (f"{len(terms.at_once)} orders within an hour", terms.at_once),
            "same_order_again": (
                f"ordered within a week again what it had ordered: {terms.repeats} times",
                terms.again,
            ),
            "hardly_looks": (f"orders are {10 * known.unlooked:.0f} % of its events", known.orders[-3:]),
            "too_predictable": (
                f"as regular as a machine: {len(known.predictable)} times",
                known.predictable,
            ),
            "surprising": (_surprise(known.surprising), known.surprising),
            "labelled": (
                "much like users whom labels call fake",
                [known.labelled_at] if known.labelled_at else [],
            ),
        }
        codes = (*OWN_TERMS, *_BESIDE)
        ranked = sorted(zip(nats, codes, strict=True), key=lambda pair: -pair[0])[:_MOST_REASONS]
        return [
            _Reason(code, said[code][0], {"nats": round(weight, 3)}, said[code][1][-_SHOWN_OF_REASON:])
            for place, (weight, code) in enumerate(ranked)
            if weight >= _LEAST_NATS or place < least
        ]

    def _broken(self, known: UserRow) -> list[_Reason]:
        """The rules that the row shows broken: the most there were within their span, and the limit."""
        broken = []
        for rule, limit in self.limits.items():
            span_ms, what = RULES[rule]
            seen: Sequence[Seen]
            if what == "events":
                times, seen = known.most_events(span_ms)
            elif len(known.orders) <= limit:
                continue
            else:
                one = what == "orders of one item"
                seen = known.most_orders_of_a_thing(span_ms) if one else known.most_orders(span_ms)
                times = len(seen)
            if times > limit:
                text = f"{times} {what} within {_WITHIN[span_ms]}, more than {limit}"
                broken.append(_Reason(rule, text, {"count": times, "limit": limit}, seen[-_SHOWN_OF_REASON:]))
        return broken

    def _entry(self, user: str, seen: Seen) -> dict[str, Any]:
        source = {"topic": self.topic, "partition": seen.partition, "offset": seen.offset}
        entry: dict[str, Any] = {"user_id": user, "event_time_ms": seen.event_time_ms, "source": source}
        for name in ("order_id", "event_id"):
            if value := getattr(seen, name):
                entry[name] = value
        return entry


def _plain_terms(known: UserRow) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Values by `OWN_TERMS` and nats by `_BESIDE` of a plain row, as nearly all are; it breaks no rule."""
    looks = known.unlooked if known.orders else 0.0
    return (0.0, 0.0, 0.0, looks), (0.0, 0.0, 0.0)


def _fastest(known: UserRow) -> _Fastest | None:
    told = []
    if known.marks:
        mark = min(known.marks, key=lambda mark: mark.took_ms)
        told.append(_Fastest(haste(mark.took_ms, TEMPO_EVENTS), TEMPO_EVENTS, mark.took_ms, [mark]))
    if known.orders and (paced := [order for order in known.orders if order.pace_ms >= 0]):
        order = min(paced, key=lambda order: order.pace_ms)
        told.append(_Fastest(haste(order.pace_ms, PACE_EVENTS), PACE_EVENTS, order.pace_ms, [order]))
    return max(told, key=lambda each: each.haste) if told else None


def _surprise(odd: Sequence[Odd]) -> str:
    if not odd:
        return ""
    mostly = Counter(ODDITIES[each.oddity] for each in odd).most_common(1)[0][0]
    return f"not what the model expects of people: {len(odd)} times, mostly {mostly.replace('_', ' ')}"
