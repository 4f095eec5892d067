"""The source of a round: each user's events carry 1, 2, 3, ... so that one too few or too many can be named.

Idempotent and patient: it survives a broker that is killed and started again. A few records cannot be
decoded and a few are tombstones, so that dead letters and erased users are part of every round.
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


@dataclass
class Delivered:
    """What the broker answered."""

    accepted: int = 0
    failed: int = 0


class Driver(threading.Thread):
    """Produces in a thread of its own until all events are sent.

    Args:
        rate: events a second; 0 sends as fast as it can.
        sequences: of each user so far, shared by the drivers of one round that follow each other.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        events: int,
        rate: float,
        users: int,
        seed: int,
        sequences: dict[int, int] | None = None,
    ):
        super().__init__(name="driver", daemon=True)
        self.topic, self.events, self.rate, self.users = topic, events, rate, users
        self.sequences = {} if sequences is None else sequences
        self.delivered = Delivered()
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
        for number in range(self.events):
            key, value = self._event()
            while True:
                try:
                    self._producer.produce(self.topic, key=key, value=value, on_delivery=self._answered)
                    break
                except BufferError:
                    self._producer.poll(0.1)
            if number % 50 == 0:
                self._producer.poll(0)
                early_s = began + number / self.rate - time.monotonic() if self.rate else 0
                if early_s > 0:
                    time.sleep(early_s)
        self._producer.flush(120)

    def _event(self) -> tuple[bytes, bytes | None]:
        user = self._random.randrange(self.users)
        key, kind = b"u%d" % user, self._random.random()
        if kind < TOMBSTONE_SHARE:
            return key, None
        if kind < TOMBSTONE_SHARE + UNDECODABLE_SHARE:
            return key, b"\xff not an event %d" % self._random.randrange(10**9)
        self.sequences[user] = self.sequences.get(user, 0) + 1
        return key, json.dumps(
            {"seq": self.sequences[user], "page": f"/p/{self._random.randrange(1000)}"}
        ).encode()

    def _answered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.delivered.accepted += 1
        else:
            self.delivered.failed += 1

    def finish(self, timeout_s: float = 180) -> None:
        """Wait for the last answer.

        Raises:
            RuntimeError: an event was not accepted; the round proves nothing then.
        """
        self.join(timeout_s)
        if self.is_alive() or self.delivered.accepted != self.events:
            raise RuntimeError(f"The driver sent {self.events} events, the broker took {self.delivered}.")
