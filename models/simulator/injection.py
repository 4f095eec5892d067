"""Attacks and hard negatives among the events of a log, simulated or real, and the truth about every user of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from models.simulator.attacks import ATTACKS, group_sizes
from models.simulator.cast import Account, Cast
from models.simulator.market import SESSION_GAP_MS, InjectionError, LogEvent, Market
from models.simulator.negatives import NEGATIVES

__all__ = ["AccountLabel", "Injection", "inject"]

# Streams of chance of their own: one more kind, or one more account of it, changes no other group's parameters.
_CASTING, _ATTACKS, _NEGATIVES, _NAMING = 0xCA57, 0xA77A, 0x4E60, 0x1D5


class AccountLabel(msgspec.Struct, kw_only=True, gc=False, omit_defaults=True):
    """The truth about one user.

    Attributes:
        label: ``fake``, ``honest``, or ``crawler`` for those of the simulated shop, which do not announce themselves.
        kind: of attack or negative; ``original`` for who was replayed (to be left out of the negatives: a copy ties
            with it), ``normal`` for everybody else. Of a person in two crowds, the first.
        group: those who act together.
        source_user: the original of a replay.
        fake_from_ms: time of the first event that serves the attack.
    """

    user_id: str
    label: str
    kind: str
    group: str | None = None
    source_user: str | None = None
    fake_from_ms: int | None = None


class Injection(NamedTuple):
    """What is put in, in time order, and the labels of all users, in order of user_id."""

    events: list[LogEvent]
    labels: list[AccountLabel]


def inject(
    events: Sequence[LogEvent],
    attacks: Mapping[str, int],
    negatives: Mapping[str, int],
    seed: int,
    *,
    crawlers: Collection[str] = (),
) -> Injection:
    """Write scripts for a log, in the log's own language.

    Args:
        events: the log in time order; left unchanged.
        attacks: accounts by name of ``ATTACKS``.
        negatives: sales, links, households or accounts by name of ``NEGATIVES``.
        seed: the same arguments give the same events and labels.
        crawlers: users of the log who are known to be no people; nobody copies them, and no crowd has them.

    Raises:
        InjectionError: the log holds too little for that.
    """
    market = Market(events, crawlers)
    cast = Cast(market, _chance(seed, _CASTING))
    if "replay" in attacks:
        cast.choose_originals(attacks["replay"])
    accounts: list[Account] = []
    for place, (kind, script) in enumerate(ATTACKS.items()):
        sizes = group_sizes(_chance(seed, _ATTACKS, place), attacks.get(kind, 0))
        for number, size in enumerate(sizes):
            rng = _chance(seed, _ATTACKS, place, number)
            accounts += script(cast, rng, f"{kind}-{number + 1}", size)
    for place, (kind, negative) in enumerate(NEGATIVES.items()):
        for number in range(negatives.get(kind, 0)):
            rng = _chance(seed, _NEGATIVES, place, number)
            accounts += negative(cast, rng, f"{kind}-{number + 1}")
    for account in accounts:
        if not account.events:
            raise InjectionError(
                f"A {account.kind} leaves no trace in this log: its actions are {', '.join(market.actions)[:200]}, "
                f"and none of them is what a {account.kind} does. Leave it out, or name the log's format."
            )
    return Injection(_named(accounts, cast, _chance(seed, _NAMING)), _labels(accounts, market, crawlers))


def _chance(seed: int, *branch: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, *branch))))


def _named(accounts: list[Account], cast: Cast, rng: np.random.Generator) -> list[LogEvent]:
    """All scripted events in time order, with ids of events, orders and sessions where the log has them."""
    orders: dict[tuple[str, str], str | None] = {}
    sessions: dict[str, tuple[int, str | None]] = {}
    scripted = sorted(
        (event for account in accounts for event in account.events),
        key=lambda event: (event.event_time_ms, event.user_id),
    )
    named = []
    for event in scripted:
        order = event.user_id, event.order_id or ""
        if event.order_id is not None and order not in orders:
            orders[order] = cast.drawn("order_id", rng)
        last_ms, session_id = sessions.get(event.user_id, (0, None))
        if event.event_time_ms - last_ms > SESSION_GAP_MS:
            session_id = cast.drawn("session_id", rng)
        sessions[event.user_id] = event.event_time_ms, session_id
        named.append(
            msgspec.structs.replace(
                event,
                event_id=cast.drawn("event_id", rng),
                order_id=orders.get(order),
                session_id=session_id,
            )
        )
    return named


def _labels(accounts: list[Account], market: Market, crawlers: Collection[str]) -> list[AccountLabel]:
    originals = {account.source_user for account in accounts}
    labels = {
        user: AccountLabel(
            user_id=user,
            label="crawler" if user in crawlers else "honest",
            kind="original" if user in originals else "normal",
        )
        for user in market.users
    }
    labelled: set[str] = set()
    for account in accounts:
        if account.user_id not in labelled:
            labelled.add(account.user_id)
            labels[account.user_id] = AccountLabel(
                user_id=account.user_id,
                label=account.label,
                kind=account.kind,
                group=account.group,
                source_user=account.source_user,
                fake_from_ms=account.fake_from_ms,
            )
    return [labels[user] for user in sorted(labels)]
