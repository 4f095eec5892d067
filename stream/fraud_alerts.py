"""Alerts about fake accounts and what they push, of a log: the terms of ``models.fraud`` in codes and words.

A user is flagged at the event that lifts the score over the threshold; when the score has risen clearly by the end of
the log, a second alert supersedes the first. Items (or shops) are flagged when three flagged users share evidence
there, devices when three flagged users share them. The threshold is the score that the wanted share of honest users
reaches, by a reference population without the users judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from models.fraud.fusion import Reference, cross_fitted, reference_of
from models.fraud.rules import Broken, Rules
from models.fraud.watch import GROUP_TERMS, TERMS, Found, watched
from stream.alerts import Alert, severity_of
from stream.engagements import Coded, announced, coded
from stream.errors import ConfigurationError
from stream.events import Event, decode_events
from stream.formats import adapt_object

__all__ = ["GROUP_KIND", "USER_KIND", "FraudAlerts", "fraud_alerts", "usual_of", "usual_users"]

USER_KIND, GROUP_KIND = "fake_account", "click_farm"
FOLDS = 5
_GROUP = 3
#: Fewer users than this are no population to be unusual in; the rules still hold.
_POPULATION = 60
_MOST_REASONS = 4
_MEMBERS = 64
#: A term that says less than this is no reason, and a score that rose by less is no news.
_LEAST_NATS, _NEWS_NATS = 2.0, 3.0
_WORDS = {
    "haste": "events follow each other faster than other users'",
    "orders_at_once": "many orders within an hour",
    "same_order_again": "orders the same thing again and again",
    "regular_pauses": "pauses as regular as a clock",
    "narrow_interest": "hardly looks at anything but three items",
    "hardly_looks": "orders more of what it looks at than other users",
    "together": "keeps coming to items within the same hour as the same others",
    "visited": "visits the same rarely visited items as the same others",
    "ordered": "keeps ordering what the same others order",
    "insistence": "comes back to an item again and again, as others do at this item alone",
    "unseen_orders": "ordered an item with more orders than its audience explains",
    "repeated_orders": "repeats orders of an item, as others do at this item alone",
    "same_path": "goes through a session that another user has lived through, with the same pauses",
}
_RULE_WORDS = {
    "events_per_second": "events within a second",
    "events_per_minute": "events within a minute",
    "orders_per_hour": "orders within an hour",
    "same_order_per_day": "orders of one item within a day",
}


def usual_users(
    records: Sequence[Any],
    below: int,
    before_ms: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Any] | None:
    """What a manifest keeps of a population: the reference that judges users of other logs; None of too few.

    Args:
        records: of a shop, with ``key`` and ``value``.
        below: users with crc32(user id) % 100 from here on are left out.
        before_ms: so are events from this moment on.
        advance: told the engagements done.
    """
    decoded = decode_events(
        [record.key for record in records], [record.value for record in records], adapt_object
    )
    events = [
        event
        for event in decoded
        if isinstance(event, Event)
        and crc32(event.user_id.encode()) % 100 < below
        and (before_ms is None or event.event_time_ms < before_ms)
    ]
    events.sort(key=lambda event: event.event_time_ms)
    if not any(event.item_id or event.lines for event in events):
        return None
    log = coded(events)
    if len(log.users) < _POPULATION:
        return None
    found, _ = watched(log.log, advance)
    return reference_of(found.user_R, found.n_R, found.values_RT).as_dict()


def usual_of(artefact: Any) -> Reference | None:
    """The reference in the manifest of a ``models.registry.Artefact``; None where training made none.

    Raises:
        ConfigurationError: it is of another build.
    """
    kept = artefact.manifest.get("fraud")
    try:
        return None if kept is None else Reference.from_dict(kept)
    except (KeyError, ValueError) as error:
        raise ConfigurationError(
            f"Model {artefact.name}/{artefact.version} has a reference for alerts of another build ({error}). Train it "
            "again, or score without --model."
        ) from None


class FraudAlerts(NamedTuple):
    """What a log gave: alerts by event time, and the highest score of every user."""

    alerts: list[Alert]
    scores: dict[str, float]


class _Flag(NamedTuple):
    """A user at a row: when and how sure."""

    row: int
    time_ms: int
    score: float


class _Log:
    """Events with their places in the source, coded, watched and scored."""

    def __init__(self, events: Sequence[tuple[int, Event]], topic: str, reference: Reference | None) -> None:
        self.events, self.topic = events, topic
        self.coded: Coded = coded(event for _, event in events)
        self.reference = reference

    def score(
        self, advance: Callable[[int], object]
    ) -> tuple[Found, NDArray, NDArray, list[Reference], NDArray]:
        found, _ = watched(self.coded.log, advance)
        fold = np.array([crc32(user.encode()) % FOLDS for user in self.coded.users], np.int64)
        if self.reference is None:
            if len(self.coded.users) < _POPULATION:
                nobody = np.zeros(len(found.user_R))
                return found, nobody, nobody, [], fold
            nats, score, references = cross_fitted(found.user_R, found.n_R, found.values_RT, fold, FOLDS)
            return found, nats, score, references, fold
        nats = self.reference.nats(found.n_R, found.values_RT)
        return found, nats, self.reference.level(nats), [self.reference] * FOLDS, fold

    def evidence(self, engagements: Sequence[int]) -> list[dict[str, Any]]:
        """Events by the numbers of engagements, as alerts name them."""
        shown = []
        for place in dict.fromkeys(self.coded.event_N[number] for number in engagements):
            offset, event = self.events[place]
            entry: dict[str, Any] = {
                "user_id": event.user_id,
                "event_time_ms": event.event_time_ms,
                "source": {"topic": self.topic, "partition": 0, "offset": offset},
            }
            for name in ("order_id", "event_id"):
                if value := getattr(event, name):
                    entry[name] = value
            shown.append(entry)
        return shown


def fraud_alerts(
    events: Sequence[tuple[int, Event]],
    topic: str,
    *,
    target_fpr: float = 0.01,
    limits: Mapping[str, int] | None = None,
    reference: Reference | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> FraudAlerts:
    """Judge the users of a log, and what they share.

    Args:
        events: offset and event, in time order.
        topic: that evidence names.
        target_fpr: share of honest users that may be flagged.
        limits: of ``models.fraud.rules``; none by default.
        reference: of other users (a model's); without one it is cross-fitted on the users of the log.
        advance: told the engagements done.

    Raises:
        ConfigurationError: ``target_fpr`` is no share between 0 and 1.
    """
    if not 0 < target_fpr < 1:
        raise ConfigurationError(f"--target-fpr {target_fpr} is no share between 0 and 1. Use 0.01.")
    if not events:
        return FraudAlerts([], {})
    log = _Log(events, topic, reference)
    found, nats, score, references, fold = log.score(advance)
    users = log.coded.users
    best = np.zeros(len(users))
    np.maximum.at(best, found.user_R, score)
    broken = _broken(events, limits or {})
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(score >= 1 - target_fpr).tolist():
        rows[int(found.user_R[row])].append(row)

    alerts: list[Alert] = []
    flags: dict[int, _Flag] = {}
    for user, theirs in rows.items():
        first = theirs[0]
        most = max(theirs, key=lambda row: (nats[row], -row))
        chosen = [first, most] if nats[most] >= nats[first] + _NEWS_NATS else [first]
        before: str | None = None
        for row in chosen:
            terms = references[fold[user]].terms(found.n_R[row : row + 1], found.values_RT[row : row + 1])[0]
            alert = _user_alert(log, found, row, float(score[row]), terms, broken.get(users[user]), before)
            alerts.append(alert)
            before = alert.id
        flags[user] = _Flag(first, int(log.coded.log.time_ms[found.event_R[first]]), float(best[user]))
    codes = {user: code for code, user in enumerate(users)}
    for name, (place, rules) in broken.items():
        if codes[name] not in flags:
            alerts.append(_rule_alert(log, name, place, rules, max(1 - target_fpr, float(best[codes[name]]))))
    alerts += _group_alerts(log, found, flags)
    alerts.sort(key=lambda alert: alert.event_time_ms)
    return FraudAlerts(alerts, dict(zip(users, np.round(best, 6).tolist(), strict=True)))


def _broken(
    events: Sequence[tuple[int, Event]], limits: Mapping[str, int]
) -> dict[str, tuple[int, dict[str, Broken]]]:
    """By user: place of the event that broke the first rule, and the worst of each rule."""
    rules = Rules(limits)
    found: dict[str, tuple[int, dict[str, Broken]]] = {}
    if not limits:
        return {}
    for place, (_, event) in enumerate(events):
        if announced(event):
            continue
        for one in rules.observe(
            event.user_id, event.event_time_ms, event.item_id or event.shop_id, event.action == "purchase"
        ):
            found.setdefault(event.user_id, (place, {}))[1][one.rule] = one
    return found


def _rule_reasons(rules: Mapping[str, Broken]) -> list[dict[str, Any]]:
    return [
        {
            "code": one.rule,
            "text": f"more than {one.limit} {_RULE_WORDS[one.rule]}",
            "count": one.times,
            "limit": one.limit,
        }
        for one in rules.values()
    ]


def _user_alert(
    log: _Log,
    found: Found,
    row: int,
    score: float,
    terms: NDArray,
    broken: tuple[int, dict[str, Broken]] | None,
    before: str | None,
) -> Alert:
    user, number = int(found.user_R[row]), int(found.event_R[row])
    ranked = [term for term in np.argsort(-terms).tolist() if terms[term] >= _LEAST_NATS][:_MOST_REASONS]
    ranked = ranked or [int(terms.argmax())]
    reasons: list[dict[str, Any]] = [
        {"code": TERMS[term], "text": _WORDS[TERMS[term]], "nats": round(float(terms[term]), 3)}
        for term in ranked
    ]
    shown = [number]
    for term in ranked:
        shown += [event for event in found.evidence.get((user, term), ()) if event <= number]
    if broken is not None and broken[0] <= log.coded.event_N[number]:
        reasons += _rule_reasons(broken[1])
    return _alert(log, USER_KIND, "user", log.coded.users[user], score, number, reasons, shown, before=before)


def _rule_alert(log: _Log, user: str, place: int, rules: dict[str, Broken], score: float) -> Alert:
    number = int(np.searchsorted(log.coded.event_N, place))
    return _alert(log, USER_KIND, "user", user, score, number, _rule_reasons(rules), [number])


def _group_alerts(log: _Log, found: Found, flags: Mapping[int, _Flag]) -> list[Alert]:
    """One alert an item (or shop) and a device that at least three flagged users have in common."""
    by_item: defaultdict[int, dict[int, list[int]]] = defaultdict(dict)
    codes: defaultdict[int, set[int]] = defaultdict(set)
    for (user, term), numbers in found.evidence.items():
        if user not in flags or term not in GROUP_TERMS:
            continue
        for number in numbers:
            item = int(log.coded.log.item[number])
            by_item[item].setdefault(user, []).append(number)
            codes[item].add(term)
    alerts = []
    for item, members in by_item.items():
        if len(members) < _GROUP or item < 0:
            continue
        place = log.coded.event_N[next(iter(members.values()))[0]]
        subject_type = "item" if log.events[place][1].item_id or log.events[place][1].lines else "shop"
        name = log.coded.items[item]
        reasons = [
            {"code": TERMS[term], "text": f"flagged users here: {_WORDS[TERMS[term]]}"}
            for term in sorted(codes[item])
        ]
        alerts += _shared(log, subject_type, name, members, flags, reasons)
    machines: defaultdict[str, dict[int, list[int]]] = defaultdict(dict)
    for number, user in enumerate(log.coded.log.user.tolist()):
        event = log.events[log.coded.event_N[number]][1]
        if user in flags and (machine := event.device_id or event.ip):
            machines[machine].setdefault(user, [number])
    for machine, members in machines.items():
        if len(members) >= _GROUP:
            reasons = [{"code": "shared_device", "text": "flagged users share a device or an address"}]
            alerts += _shared(log, "device", machine, members, flags, reasons)
    return alerts


def _shared(
    log: _Log,
    subject_type: str,
    subject: str,
    members: Mapping[int, list[int]],
    flags: Mapping[int, _Flag],
    reasons: list[dict[str, Any]],
) -> list[Alert]:
    """The verdict when the third member was flagged, and, if there are more, a wider one when the last was."""
    since = {
        user: max(int(np.searchsorted(log.coded.log.time_ms, flags[user].time_ms)), members[user][0])
        for user in members
    }
    ordered = sorted(members, key=since.__getitem__)
    alerts: list[Alert] = []
    for at in dict.fromkeys((since[ordered[_GROUP - 1]], since[ordered[-1]])):
        those = [user for user in ordered if since[user] <= at]
        alerts.append(
            _alert(
                log,
                GROUP_KIND,
                subject_type,
                subject,
                float(np.median([flags[user].score for user in those])),
                at,
                [{**reason, "members": len(those)} for reason in reasons],
                [members[user][0] for user in those],
                members=sorted(log.coded.users[user] for user in those),
                before=alerts[-1].id if alerts else None,
            )
        )
    return alerts


def _alert(
    log: _Log,
    kind: str,
    subject_type: str,
    subject: str,
    score: float,
    number: int,
    reasons: list[dict[str, Any]],
    shown: Sequence[int],
    *,
    members: Sequence[str] = (),
    before: str | None = None,
) -> Alert:
    offset, event = log.events[log.coded.event_N[number]]
    return Alert(
        id=f"{kind}/{subject_type}/{subject}/{log.topic}/0/{offset}",
        kind=kind,
        subject_type=subject_type,
        subject=subject,
        score=round(score, 6),
        severity=severity_of(score),
        event_time_ms=event.event_time_ms,
        reasons=reasons,
        evidence=log.evidence(shown[:24]),
        members=list(members[:_MEMBERS]),
        approximate=len(members) > _MEMBERS,
        supersedes=before,
    )
