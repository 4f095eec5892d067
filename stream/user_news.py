"""What the clicks stage tells the second stage about a user: only what is out of the ordinary. Pure.

    order   every purchase, with the pace of the eight events that end with it, if its session has as many
    tempo   every 16th event of a session, if the 16 that it completes took no longer than a limit
    oddity  an event whose anomaly (``models/anomaly.py``) is at or above a level; only every eighth event of a user's
            life is looked at: to a model of another kind of shop a third of all events is odd, and who is too
            predictable is so for a whole window of 32

An event that is several of these is told once. Of an announced crawler nothing is told: it is nobody's fake.

Tempo and pace are sums of 15 and 7 pauses as the row's window keeps them, in float16: exact to about one part in a
thousand. A late event has no pause of its own, so none is told at a late one. What a rule about events can see of this
says ``stream/user_watch.py``.

All is arrays over the micro-batches of a round; only what is told is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.group_detectors import GroupEvent

__all__ = [
    "NO_ODDITY",
    "ODDITIES",
    "ODDITY_EVERY",
    "PACE_EVENTS",
    "TEMPO_EVENTS",
    "TOO_PREDICTABLE",
    "UserEvent",
    "UserLevels",
    "UserNews",
]

#: Events whose tempo is told together.
TEMPO_EVENTS: Final = 16
#: Events whose pace is told with an order.
PACE_EVENTS: Final = 8
#: Largest reason of an oddity, by its number in ``UserEvent.oddity``.
ODDITIES: Final = ("unlikely_action", "unlikely_category", "unlikely_gap", "too_predictable")
TOO_PREDICTABLE: Final = ODDITIES.index("too_predictable")
NO_ODDITY: Final = -1
#: Of a user's events one in so many is looked at for oddities.
ODDITY_EVERY: Final = 8


class UserEvent(GroupEvent, array_like=True, frozen=True, gc=False):
    """An event of one user that is out of the ordinary; ``item_id`` is the first line's where an order has lines.

    Attributes:
        life_events: of the user, this one included.
        orders: likewise; 0 where the model's vocabulary has no purchase.
        took_ms: from the first to the last of the 16 events that this one completes; -1 where no tempo is told.
        pace_ms: from the first to the last of the eight events that end with an order; -1 where it is not told.
        anomaly: 0 to 1, of this event.
        oddity: `NO_ODDITY`, or the largest reason's place in `ODDITIES`.
        labelled: the score that labelled users taught the model, after this event; 0 of a model without labels.
    """

    life_events: int = 0
    orders: int = 0
    took_ms: int = -1
    pace_ms: int = -1
    anomaly: float = 0.0
    oddity: int = NO_ODDITY
    labelled: float = 0.0


class UserNews(NamedTuple):
    """What K of M applied events are told for; an array of K each.

    Attributes:
        place: of the event among the M, rising.
        life_events, orders, took_ms, pace_ms, anomaly, oddity, labelled: as of `UserEvent`.
    """

    place: NDArray[np.int64]
    life_events: NDArray[np.int64]
    orders: NDArray[np.int64]
    took_ms: NDArray[np.int64]
    pace_ms: NDArray[np.int64]
    anomaly: NDArray[np.float64]
    oddity: NDArray[np.int64]
    labelled: NDArray[np.float64]

    def between(self, start: int, end: int) -> UserNews:
        """Those of the events from ``start`` to ``end``, whose places then count from ``start``."""
        first, last = np.searchsorted(self.place, (start, end)).tolist()
        told: list[Any] = [column[first:last] for column in self[1:]]
        return UserNews(self.place[first:last] - start, *told)


@dataclass(frozen=True, slots=True)
class UserLevels:
    """What is out of the ordinary.

    Args:
        tempo_ms: 16 events within so long are told.
        anomaly: level from which on an event is an oddity, 0 to 1.
    """

    tempo_ms: int
    anomaly: float

    def news(
        self,
        columns: Mapping[str, np.ndarray],
        last_ms: NDArray[np.int64],
        scores: Any,
        purchase_code: int,
    ) -> UserNews:
        """What is to be told of M events.

        Args:
            columns: of ``stream.sessions.Folded``.
            last_ms: (M,) each user's last time after the event.
            scores: ``terms``, ``too_predictable``, ``anomaly_score`` and ``fake_order`` of them.
            purchase_code: of the vocabulary; -1 where it has no purchase, which is ``other`` then.
        """
        life = columns["life_events"]
        counts = columns["action_life"]
        bought = purchase_code if purchase_code >= 0 else counts.shape[1] - 1
        predictable = scores.too_predictable >= self.anomaly
        odd = (scores.anomaly_score >= self.anomaly) & (life % ODDITY_EVERY == 0)
        ordered = columns["action"] == bought
        told = odd | ordered

        position = columns["session_position"]
        ends = np.flatnonzero(position % TEMPO_EVENTS == 0)
        took_ms = _took_ms(columns, ends, TEMPO_EVENTS)
        fast = (took_ms <= self.tempo_ms) & (columns["event_time_ms"][ends] >= last_ms[ends])
        ends, took_ms = ends[fast], took_ms[fast]
        told[ends] = True

        place = np.flatnonzero(told)
        tempo, pace = np.full((2, len(place)), -1, np.int64)
        tempo[np.searchsorted(place, ends)] = took_ms
        timely = columns["event_time_ms"][place] >= last_ms[place]
        paced = np.flatnonzero(ordered[place] & (position[place] >= PACE_EVENTS) & timely)
        pace[paced] = _took_ms(columns, place[paced], PACE_EVENTS)
        oddity = np.where(predictable[place], TOO_PREDICTABLE, scores.terms[place].argmax(axis=1))
        labelled = scores.fake_order[place, 0] if scores.fake_order.shape[1] else np.zeros(len(place))
        orders = counts[place, purchase_code] if purchase_code >= 0 else np.zeros(len(place))
        return UserNews(
            place,
            life[place].astype(np.int64),
            orders.astype(np.int64),
            tempo,
            pace,
            # As the predictions show it.
            np.round(scores.anomaly_score[place].astype(np.float64), 6),
            np.where(odd[place], oddity, NO_ODDITY),
            np.round(labelled.astype(np.float64), 6),
        )


def _took_ms(columns: Mapping[str, np.ndarray], ends: NDArray[np.int64], events: int) -> NDArray[np.int64]:
    """From the first to the last of the events of a session that end with each of ``ends``."""
    log_gaps = columns["window_log_gap"][ends, 1 - events :].astype(np.float64)
    return np.rint(np.expm1(log_gaps).sum(axis=1) * 1000.0).astype(np.int64)
