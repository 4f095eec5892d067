"""Accounts that follow a script: how a script becomes events, and what accounts of all kinds share.

A group draws its parameters (intensity, sizes, jitter, devices) once, from the seed; no two groups are alike, so a
detector cannot learn one script by heart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import msgspec
import numpy as np

from models.simulator.market import SESSION_GAP_MS, InjectionError, LogEvent, Market, Product

__all__ = ["Account", "Cast", "Step"]

#: Seconds since the step before, what is done (view, click, cart, checkout, purchase), and to what.
Step = tuple[float, str, Product]


@dataclass
class Account:
    """One user of a script.

    Attributes:
        user_id: a new one, or, in an honest crowd, that of somebody in the log.
        label: ``fake`` or ``honest``.
        kind: of attack or negative.
        group: those who act together.
        events: what the script adds, in time order.
        source_user: whose sessions were replayed.
        fake_from_ms: time of the first event that serves the attack; before it the account looks like anybody.
    """

    user_id: str
    label: str
    kind: str
    group: str
    device_id: str | None = None
    ip: str | None = None
    events: list[LogEvent] = field(default_factory=list)
    source_user: str | None = None
    fake_from_ms: int | None = None


class Cast:
    """Hands out accounts and people of the log; nobody is both the original of a replay and a negative."""

    def __init__(self, market: Market, rng: np.random.Generator) -> None:
        self.market = market
        self._people = sorted(market.sessions)
        self._crowd: list[str] = []
        self.originals: list[str] = []
        self._shuffled = [self._people[k] for k in rng.permutation(len(self._people)).tolist()]
        self._examples = {field_name: market.names[field_name] for field_name in market.names}
        self._examples["user_id"] = self._people
        self._taken = {name for names in market.names.values() for name in names}
        self._n_orders = 0

    # ---- who

    def recruits(self, rng: np.random.Generator, label: str, kind: str, group: str, n: int) -> list[Account]:
        """So many new accounts; of a farm's, some share a device or an address, as the group's dice have it."""
        shared = float(rng.choice([1.0, 0.5, 0.25]))
        n_machines = max(1, round(n * shared))
        devices = [self.drawn("device_id", rng) for _ in range(n_machines)]
        ips = [self.drawn("ip", rng) for _ in range(max(1, round(n_machines * shared)))]
        return [
            Account(
                str(self.drawn("user_id", rng)),
                label,
                kind,
                group,
                devices[k % len(devices)],
                ips[k % len(ips)],
            )
            for k in range(n)
        ]

    def drawn(self, field: str, rng: np.random.Generator) -> str | None:
        """A new id of that field in the log's shape; None when the log has none such."""
        examples = self._examples[field]
        if not examples:
            return None
        attempt = 0
        while True:
            name = self.market.lookalike(rng, field, examples)
            if attempt >= 50:  # the ids have few digits, or none
                name += str(int(rng.integers(10 ** min(9, attempt // 50))))
            if name not in self._taken:
                self._taken.add(name)
                return name
            attempt += 1

    def choose_originals(self, n: int) -> None:
        """Set n people aside to be replayed, those with most to copy among the first comers."""
        lively = [user for user in self._shuffled if sum(map(len, self.market.sessions[user])) >= 8]
        # A third at most: the others are needed to be honest.
        self.originals = (lively or self._shuffled)[: max(1, min(n, len(self._shuffled) // 3))]

    def crowd(self, kind: str, group: str, n: int) -> list[Account]:
        """Up to n people of the log, who did not take part in anything as long as there are others."""
        set_aside, busy = set(self.originals), set(self._crowd)
        free = [user for user in self._shuffled if user not in set_aside]
        if len(free) < 2:
            raise InjectionError(
                f"The log's {len(self._shuffled)} ordinary users are too few for {kind}: a crowd needs at least two "
                "who are not replayed. Name a longer log, or leave it out."
            )
        # Sorting is stable: those who are not busy first, in the cast's own order.
        chosen = sorted(free, key=busy.__contains__)[:n]
        self._crowd += chosen
        accounts = []
        for user in chosen:
            last = self.market.sessions[user][-1][-1]
            accounts.append(Account(user, "honest", kind, group, last.device_id, last.ip))
        return accounts

    # ---- what

    def act(
        self,
        rng: np.random.Generator,
        account: Account,
        start_ms: int,
        steps: Iterable[Step],
        *,
        fake: bool = False,
    ) -> None:
        """Add one visit; a step for which the log has no action is left out, its pause is kept."""
        steps = list(self._unrepeated(rng, steps))
        offsets = list(accumulate(gap_s for gap_s, _, _ in steps))
        begin = offsets[0] if offsets else 0.0
        times = self.market.placed(start_ms, [offset - begin for offset in offsets])
        for time_ms, (_, role, product) in zip(times, steps, strict=True):
            action = self.market.name_of(role)
            if action is None:
                continue
            if fake:
                account.fake_from_ms = min(time_ms, account.fake_from_ms or time_ms)
            account.events.append(self._event(account, time_ms, action, product))

    def _unrepeated(self, rng: np.random.Generator, steps: Iterable[Step]) -> Iterable[Step]:
        """With a look at something beside it between two steps with one item, where the log repeats no item."""
        last: Product | None = None
        for gap_s, role, product in steps:
            first_s = gap_s
            if product == last and product.item_id is not None and not self.market.repeats_items:
                other = self.market.beside(rng, product)
                if other != product:
                    first_s = gap_s / 2.0
                    yield gap_s - first_s, "view", other
            yield first_s, role, product
            last = product

    def _event(self, account: Account, time_ms: int, action: str, product: Product) -> LogEvent:
        bought = action == self.market.name_of("purchase")
        self._n_orders += bought
        return LogEvent(
            user_id=account.user_id,
            event_time_ms=time_ms,
            action=action,
            item_id=product.item_id,
            category_id=product.category_id,
            shop_id=product.shop_id,
            price=product.price,
            currency=product.currency,
            # Every purchase is an order of its own; ids of the log's kind are given when all is there.
            order_id=f"\0{self._n_orders}" if bought and "order_id" in self.market.filled else None,
            quantity=1.0 if bought and "quantity" in self.market.filled else None,
            device_id=account.device_id,
            ip=account.ip,
        )

    def errand(self, rng: np.random.Generator, item: Product, views: int, carts: float) -> list[Step]:
        """Look so many times, with probability ``carts`` put into the cart, check out and pay, at a human pace."""
        roles = ["view"] * views + ["cart"] * (rng.random() < carts) + ["checkout", "purchase"]
        return [(self.market.pause_s(rng), role, item) for role in roles]

    def live(self, rng: np.random.Generator, account: Account, n_sessions: int) -> list[list[LogEvent]]:
        """Add an ordinary past: sessions like those of two to four people, on other days, with other pauses.

        Half of the items are others of the same shelf, so that the past is nobody's and yet could be anybody's.
        """
        market = self.market
        sources = [
            self._people[k] for k in rng.integers(len(self._people), size=int(rng.integers(2, 5))).tolist()
        ]
        candidates = [session for user in sources for session in market.sessions[user]]
        candidates = [candidates[k] for k in rng.permutation(len(candidates)).tolist()]
        placed: list[list[LogEvent]] = []
        for session in candidates:
            if len(placed) >= n_sessions:
                break
            copied = self._varied(rng, account, session[:60])
            apart = all(
                copied[0].event_time_ms > other[-1].event_time_ms + SESSION_GAP_MS
                or copied[-1].event_time_ms < other[0].event_time_ms - SESSION_GAP_MS
                for other in placed
            )
            if apart:
                placed.append(copied)
                account.events += copied
        return placed

    def copied(
        self, event: LogEvent, account: Account, time_ms: int, product: Product | None = None
    ) -> LogEvent:
        """Another's event as the account's, at another time and, on request, about another product."""
        about = {} if product is None else product._asdict()
        return msgspec.structs.replace(
            event,
            user_id=account.user_id,
            event_time_ms=time_ms,
            device_id=account.device_id,
            ip=account.ip,
            **about,
        )

    def _varied(
        self, rng: np.random.Generator, account: Account, session: Sequence[LogEvent]
    ) -> list[LogEvent]:
        market = self.market
        gaps_s = [
            (event.event_time_ms - before.event_time_ms) / 1000.0 * float(np.exp(rng.normal(0.0, 0.3)))
            for before, event in pairwise(session)
        ]
        start_ms = session[0].event_time_ms
        start_ms += market.other_day_ms(rng, start_ms, session[-1].event_time_ms) + int(
            rng.normal(0.0, 900_000)
        )
        times = market.placed(start_ms, list(accumulate(gaps_s, initial=0.0)))
        others: dict[str, Product] = {}
        varied = []
        for event, time_ms in zip(session, times, strict=True):
            product = Product(event.item_id, event.category_id, event.shop_id, event.price, event.currency)
            if event.item_id is not None:
                # An item that comes back within the session comes back as the same other item.
                if event.item_id not in others:
                    others[event.item_id] = market.beside(rng, product) if rng.random() < 0.5 else product
                product = others[event.item_id]
            varied.append(self.copied(event, account, time_ms, product))
        return varied
