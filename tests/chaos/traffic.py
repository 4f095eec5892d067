"""Clicks of a round of the product: people, nonsense, schemes that the second stage has to see, and labels.

A scheme lasts some minutes of event time and has accounts of its own, so that each is one alert or two, and one lost is
seen: a buyer who brushes a shop, four who order one item again and again, an account that is faster than people.
"""

from __future__ import annotations

import json
import random
import threading
import time
from typing import Any

from confluent_kafka import Producer

from stream.settings import Settings
from tests.broker.test_pipeline import traffic
from tests.chaos.cluster import silent
from tests.chaos.driver import POISON

BLOCK = 50  # records of people that are drawn together
BLOCK_MS = BLOCK * 700
_BEGIN_MS = 1_735_000_000_000
_SCHEME_BLOCKS = 16

Record = tuple[bytes | None, bytes | None]


def schemes(block: int) -> list[Record]:
    """What schemers do beside block number ``block`` of the people's traffic."""
    number, step = divmod(block, _SCHEME_BLOCKS)
    at_ms = _BEGIN_MS + block * BLOCK_MS
    records = []
    if step in {1, 4, 7, 10}:  # one buyer, one shop, four orders
        records.append(_order(f"brush{number}", at_ms, f"{number}-{step}", shop_id=f"shop{number}"))
    if step % 4 == 2:  # four buyers, one item, four orders each
        for buyer in range(4):
            name = f"farm{number}-{buyer}"
            records.append(_order(name, at_ms + buyer, f"{number}-{step}-{buyer}", item_id=f"farmed{number}"))
    if step == 5:  # sixteen events within four seconds, then six orders
        name = f"burst{number}"
        for place in range(16):
            records.append(_event(name, at_ms + 250 * place, f"{block}-{place}", "view", item_id=f"i{place}"))
        for place in range(6):
            at = at_ms + 5000 + 100 * place
            records.append(_order(name, at, f"{number}-b{place}", item_id=f"i{place}"))
    if step == 12:  # somebody of an hour ago, whose silence was an alert, is back
        records.append(_event(f"brush{number - 6}", at_ms, f"{block}", "view"))
    return records


def labels(block: int) -> list[Record]:
    """What somebody finds out beside that block: of orders of half the traffic ago, and of one that nobody made.

    A label that is read before its order joins nothing, and workers that are down fall behind.
    """
    number, step = divmod(block, _SCHEME_BLOCKS)
    if step not in {13, 14}:
        return []
    scheme = number // 2
    user, at_ms = f"brush{scheme}", _BEGIN_MS + block * BLOCK_MS
    label = {"subject": "order", "user_id": user, "time_ms": at_ms, "by": "mary"}
    told = "fraud" if step == 13 else "genuine"
    names = [f"o{scheme}-1", f"o{scheme}-4"] if step == 13 else [f"o{scheme}-4", "nobody's"]
    return [(user.encode(), json.dumps({**label, "id": name, "label": told}).encode()) for name in names]


def _order(user: str, at_ms: int, order_id: str, **fields: str) -> Record:
    return _event(user, at_ms, order_id, "purchase", order_id=f"o{order_id}", price="9.99", **fields)


def _event(user: str, at_ms: int, name: str, action: str, **fields: str) -> Record:
    event: dict[str, Any] = {
        "user_id": user,
        "event_id": f"{user}/{name}",
        "event_time_ms": at_ms,
        "action": action,
        "item_id": "i1",
        "category_id": "c1",
        **fields,
    }
    if "price" in event:
        event["price"] = float(event["price"])
    return user.encode(), json.dumps(event).encode()


class Clicks(threading.Thread):
    """Clicks of 60 users with repeats, late ones, tombstones and rejected ones, schemes and labels, until told to end.

    Args:
        rate: records of people a second, about.
        blocks: after so many end by yourself; None for as many as come until ``finish``.
    """

    def __init__(self, settings: Settings, rate: float, seed: int, blocks: int | None = None, first: int = 0):
        super().__init__(daemon=True, name="clicks")
        self._topic, self._labels = settings.clicks_topic, settings.labels_topic
        self._rate, self._chance = rate, random.Random(seed)
        self._seed, self._first, self._blocks = seed, first, blocks
        self._poison = 0
        self._refused: list[str] = []
        self._enough = threading.Event()
        self._producer = Producer(
            {
                **settings.kafka.librdkafka(),
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "message.timeout.ms": 120_000,
                "reconnect.backoff.max.ms": 500,
            },
            logger=silent,
        )

    def poison(self, count: int) -> None:
        """Send so many hostile records next."""
        self._poison = count

    def finish(self, timeout_s: float = 180) -> None:
        """Send no more and wait for the last answer.

        Raises:
            RuntimeError: a record was not accepted; the round proves nothing then.
        """
        if self._blocks is None:
            self._enough.set()
        self.join(timeout_s)
        if self.is_alive() or self._refused:
            raise RuntimeError(f"The broker did not take every record: {self._refused[:3] or 'no answer'}.")

    def run(self) -> None:
        began_s, sent = time.monotonic(), 0
        while not self._enough.is_set() and sent != self._blocks:
            block = self._first + sent
            for key, value in (*traffic(BLOCK, first=block * BLOCK, seed=self._seed), *schemes(block)):
                self._send(self._topic, key, value)
            for key, value in labels(block):
                self._send(self._labels, key, value)
            sent += 1
            while self._poison:
                self._poison -= 1
                number = b"%d" % self._chance.randrange(10**9)
                self._send(self._topic, b"poison", self._chance.choice(POISON).replace(b"X", number))
            self._producer.poll(0)
            if self._rate:
                self._enough.wait(max(0.0, began_s + sent * BLOCK / self._rate - time.monotonic()))
        self._producer.flush(120)

    def _send(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        def answered(error: Any, message: Any) -> None:
            if error is not None:
                self._refused.append(str(error))

        self._producer.produce(topic, value, key, on_delivery=answered)
