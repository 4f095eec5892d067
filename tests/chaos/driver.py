"""The source of a round: each user's events carry 1, 2, 3, ... so that one too few or too many can be named.

Idempotent and patient: it survives a broker that is killed and started again. A few records cannot be
decoded, a few are tombstones and a few repeat an event, so that all of that is part of every round.
"""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass

from confluent_kafka import KafkaError, Message, Producer

from tests.chaos.cluster import silent

UNDECODABLE_SHARE = 0.01
TOMBSTONE_SHARE = 0.003
DUPLICATE_SHARE = 0.01
REPEATABLE = 3  # of a user's newest events: fewer than a row remembers

# Values that are certain to be no event, whatever stands in for X.
POISON = (
    b"\xff\xfe\x00X",
    b"[" * 20_000 + b"X",
    b'{"seq": ' + b"9" * 5_000 + b', "x": "X"}',
    b'{"seq": "X"}',
    b'{"seq": NaN, "x": "X"}',
    b'{"seq": true, "x": "X"}',
    b'{"page": "X"}',
    b'["X"]',
    b'{"seq": 1' + b" " * 60_000 + b"X",
    b"",
)


@dataclass
class Delivered:
    """What the broker answered."""

    accepted: int = 0
    failed: int = 0


class Driver(threading.Thread):
    """Produces in a thread of its own until all events are sent.

    Args:
        events: None for as many as come until ``finish``.
        rate: events a second; 0 sends as fast as it can.
        sequences: of each user so far, shared by the drivers of one round that follow each other.
        duplicates: share of events that repeat one of their user's newest.
        tombstones: share of records that erase their user.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        events: int | None,
        rate: float,
        users: int,
        seed: int,
        sequences: dict[int, int] | None = None,
        duplicates: float = DUPLICATE_SHARE,
        tombstones: float = TOMBSTONE_SHARE,
    ):
        super().__init__(name="driver", daemon=True)
        self.topic, self.events, self.rate, self.users = topic, events, rate, users
        self.sequences = {} if sequences is None else sequences
        self.delivered = Delivered()
        self.sent = self.poisoned = 0
        self._duplicates, self._tombstones = duplicates, tombstones
        self._repeatable: dict[int, list[int]] = {}
        self._poison = 0
        self._enough = threading.Event()
        self._random = random.Random(seed)
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.timeout.ms": 120_000,
                "queue.buffering.max.messages": 200_000,
                "reconnect.backoff.max.ms": 500,
            },
            logger=silent,
        )

    def run(self) -> None:
        began = time.monotonic()
        while not self._enough.is_set() and self.sent != self.events:
            while self._poison:
                self._poison -= 1
                self.poisoned += 1
                self._produce(*self._hostile())
            self._produce(*self._event())
            self.sent += 1
            if self.sent % 50 == 0:
                self._producer.poll(0)
                early_s = began + self.sent / self.rate - time.monotonic() if self.rate else 0
                if early_s > 0:
                    time.sleep(early_s)
        self._producer.flush(120)

    def _produce(self, key: bytes, value: bytes | None) -> None:
        while True:
            try:
                self._producer.produce(self.topic, key=key, value=value, on_delivery=self._answered)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def poison(self, count: int) -> None:
        """Send so many hostile records next, besides the events."""
        self._poison = count

    def _hostile(self) -> tuple[bytes, bytes]:
        key = b"p%d/\n\xff\0" % self._random.randrange(20)
        number = b"%d" % self._random.randrange(10**9)
        return key, self._random.choice(POISON).replace(b"X", number)

    def _event(self) -> tuple[bytes, bytes | None]:
        user = self._random.randrange(self.users)
        key, kind = b"u%d" % user, self._random.random()
        newest = self._repeatable.setdefault(user, [])
        if kind < self._tombstones:
            newest.clear()  # with the row goes what it remembers
            return key, None
        if kind < self._tombstones + UNDECODABLE_SHARE:
            return key, b"\xff not an event %d" % self._random.randrange(10**9)
        if newest and self._random.random() < self._duplicates:
            sequence = self._random.choice(newest[-REPEATABLE:])
        else:
            sequence = self.sequences[user] = self.sequences.get(user, 0) + 1
            newest.append(sequence)
        return key, json.dumps({"seq": sequence, "page": f"/p/{self._random.randrange(1000)}"}).encode()

    def _answered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.delivered.accepted += 1
        else:
            self.delivered.failed += 1

    def finish(self, timeout_s: float = 180) -> None:
        """Wait for the last answer; without a number of events, send no more.

        Raises:
            RuntimeError: an event was not accepted; the round proves nothing then.
        """
        if self.events is None:
            self._enough.set()
        self.join(timeout_s)
        sent = self.sent + self.poisoned
        if self.is_alive() or self.delivered.accepted != sent:
            raise RuntimeError(f"The driver sent {sent} records, the broker took {self.delivered}.")
