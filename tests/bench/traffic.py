"""Traffic of a bench: canonical events that are the same for the same seed, a backlog of them or paced.

    python -m tests.bench.traffic SETTINGS_JSON        the paced source, as a process of its own

Users are drawn evenly, so that every micro-batch meets rows from all over the store; times rise. It is meant to be
hard on the pipeline, not to look like a shop: ``foreclick simulate`` does that.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner
from confluent_kafka import KafkaError, Message, Producer

from models.vocabulary import DEFAULT_ACTIONS
from stream.replay import producer_of
from tests.bench.processes import BenchFailed

ITEMS_PER_CATEGORY = 50
CHUNK = 50_000
TICK_S = 0.005  # of the paced source, like a producer's linger: its wait is part of the latency
FLUSH_TIMEOUT_S = 60
# Views are frequent and purchases rare, as in any shop.
_WEIGHTS = np.array([40, 14, 10, 6, 10, 4, 4, 5, 2, 5], np.float64)

Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Traffic:
    """A population and what it does.

    Args:
        categories: names that events carry.
        part: makes event ids of one part of a bench differ from those of another.
    """

    users: int
    categories: tuple[str, ...]
    part: str
    seed: int = 1

    def records(
        self, events: int, start_ms: float, step_ms: float, each_user_once: bool = False
    ) -> Iterator[Pair]:
        """Key and value of events whose times rise by ``step_ms`` from ``start_ms``."""
        random = np.random.default_rng([self.seed, *self.part.encode()])
        users = random.permutation(self.users) if each_user_once else None
        for first in range(0, events, CHUNK):
            n = min(CHUNK, events - first)
            user = random.integers(0, self.users, n) if users is None else users[first : first + n]
            category = random.integers(0, len(self.categories), n)
            item = category * ITEMS_PER_CATEGORY + random.integers(0, ITEMS_PER_CATEGORY, n)
            cents = 99 + item * 7919 % 49_900
            action = random.choice(len(DEFAULT_ACTIONS), n, p=_WEIGHTS / _WEIGHTS.sum())
            time_ms = (start_ms + np.arange(first, first + n) * step_ms).astype(np.int64)
            unique = random.integers(0, 1 << 62, n)
            names = self.categories
            columns = (user, unique, time_ms, action, item, category, cents)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            for number, (u, i, t, a, k, c, p) in enumerate(rows, first):
                value = (
                    b'{"user_id":"u%06d","event_id":"%b-%010d-%016x","event_time_ms":%d,"action":"%b","item_id":"i%d",'
                    b'"category_id":"%b","price":%d.%02d}'
                ) % (
                    u,
                    self.part.encode(),
                    number,
                    i,
                    t,
                    _ACTIONS[a],
                    k,
                    names[c].encode(),
                    p // 100,
                    p % 100,
                )
                yield b"u%06d" % u, value


_ACTIONS = tuple(name.encode() for name in DEFAULT_ACTIONS)


class Source:
    """An idempotent producer into one topic that counts what the broker refused."""

    def __init__(self, client: dict[str, Any], topic: str, **settings: Any):
        self._topic = topic
        self._refused = 0
        self._producer: Producer = producer_of(client, on_delivery=self._delivered, **settings)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        self._refused += error is not None

    def put(self, pair: Pair) -> None:
        while True:
            try:
                self._producer.produce(self._topic, key=pair[0], value=pair[1])
                return
            except BufferError:
                self._producer.poll(0.1)

    def poll(self) -> None:
        self._producer.poll(0)

    def close(self) -> None:
        left = self._producer.flush(FLUSH_TIMEOUT_S)
        if left or self._refused:
            raise BenchFailed(f"{left + self._refused} records for {self._topic} did not reach the broker.")


def send_backlog(client: dict[str, Any], topic: str, records: Iterator[Pair]) -> int:
    """Produce the records as fast as the broker takes them; how many there were."""
    source, sent = Source(client, topic, **{"linger.ms": 50}), 0
    for pair in records:
        source.put(pair)
        sent += 1
        if sent % 1000 == 0:
            source.poll()
    source.close()
    return sent


async def send_paced(
    client: dict[str, Any], topic: str, traffic: Traffic, rate: float, seconds: float
) -> int:
    """Produce at a steady rate, all that is due once a tick; event and record times are those when they were due.

    What is due goes to all partitions in one request, as from Java's producer with as much linger. librdkafka sends a
    request a partition: a thousand of them a second took the broker half a core, which is then not measured but paid
    for by whoever is.
    """
    events = int(rate * seconds)
    start_s = time.time() + 1.5 + events * 6e-6  # the records are made before the first is due
    pairs = list(traffic.records(events, start_s * 1000, 1000 / rate))
    producer = AIOKafkaProducer(**client, enable_idempotence=True, acks="all", linger_ms=0)
    await producer.start()
    numbers = sorted(await producer.partitions_for(topic))
    partitioner = DefaultPartitioner()
    partition = [partitioner(key, numbers, numbers) for key, _ in pairs]
    sent, acknowledged = 0, []
    while sent < events:
        due = max(sent, min(events, int((time.time() - start_s) * rate)))
        batches: dict[int, Any] = {}
        for number in range(sent, due):
            batch = batches.get(partition[number])
            if batch is None:
                batch = batches[partition[number]] = producer.create_batch()
            key, value = pairs[number]
            batch.append(timestamp=int((start_s + number / rate) * 1000), key=key, value=value)
        acknowledged += [
            await producer.send_batch(batch, topic, partition=number) for number, batch in batches.items()
        ]
        sent = due
        await asyncio.sleep(TICK_S)
    for future in acknowledged:
        await future
    await producer.stop()
    return sent


def main() -> None:
    """The paced source."""
    settings = json.loads(sys.argv[1])
    traffic = Traffic(**settings["traffic"])
    sent = asyncio.run(
        send_paced(settings["client"], settings["topic"], traffic, settings["rate"], settings["seconds"])
    )
    print(json.dumps({"sent": sent}), flush=True)


if __name__ == "__main__":
    main()
