"""How far tools have come through a topic, in a compacted topic of their own.

Written in the transaction that carries what the tool did, so that work and position cannot disagree. A consumer
group would forget: the broker drops offsets of a group without members after a week, and the work would be done twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaException, Producer

from stream.broker.topics import ensure_topics
from stream.errors import TopicError
from stream.replay import producer_of
from stream.settings import Settings
from stream.topic_reader import Bounds, bounds, read, reader
from stream.topics import positions_topic, topic_specs

TRANSACTION_S = 60.0
SETTLE_S = 70.0  # longer than the broker waits before it aborts a transaction that nobody ends


class ToolPositions:
    """The positions of one tool, and the transactions that move them.

    Opening fences an earlier run of the same tool: its open transaction is aborted before anything is read.

    Args:
        settings: where the broker is.
        tool: names the transactional id and the keys, such as ``dlq-replay``.

    Raises:
        TopicError: the broker refuses transactions.
    """

    def __init__(self, settings: Settings, tool: str):
        self._topic = positions_topic(settings)
        self._prefix = f"{tool}/"
        self._tool = tool
        client = settings.kafka.librdkafka()
        ensure_topics(client, [spec for spec in topic_specs(settings) if spec.name == self._topic])
        self.producer: Producer = producer_of(
            client,
            **{
                "transactional.id": f"{settings.app_id}-{tool}",
                "transaction.timeout.ms": int(TRANSACTION_S * 1000),
            },
        )
        with self._refusal():
            self.producer.init_transactions(TRANSACTION_S)
        self._found = self._read(client)

    def _read(self, client: Mapping[str, Any]) -> dict[str, Any]:
        with reader(client, committed=False) as consumer:
            high = bounds(consumer, self._topic, 1)[0].end
        with reader(client) as consumer:
            deadline = time.monotonic() + SETTLE_S
            while (found := bounds(consumer, self._topic, 1)[0]).end < high:
                if time.monotonic() > deadline:
                    raise TopicError(
                        f"Topic {self._topic} has a transaction that nobody ended. Look for it on the broker: "
                        "kafka-transactions.sh find-hanging"
                    )
                time.sleep(0.05)
            return {
                record.key.decode(): json.loads(record.value)
                for record in read(consumer, self._topic, {0: Bounds(*found)})
                if record.key and record.value and record.key.startswith(self._prefix.encode())
            }

    def get(self, name: str) -> Any:
        """What was last committed under the name, or None."""
        return self._found.get(self._prefix + name)

    @contextmanager
    def transaction(self, moved: Mapping[str, Any]) -> Iterator[Producer]:
        """Commit what is produced inside together with new positions; all of it or nothing.

        Args:
            moved: JSON values by name; read when the block ends.

        Raises:
            TopicError: refused, or another run of the tool has taken over.
        """
        with self._refusal():
            self.producer.begin_transaction()
            try:
                yield self.producer
                for name, value in moved.items():
                    self.producer.produce(
                        self._topic, key=self._prefix + name, value=json.dumps(value).encode(), partition=0
                    )
                self.producer.commit_transaction(TRANSACTION_S)
            except BaseException:
                self.producer.abort_transaction(TRANSACTION_S)
                raise
        self._found.update({self._prefix + name: value for name, value in moved.items()})

    @contextmanager
    def _refusal(self) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            reason = error.args[0]
            raise TopicError(
                f"The broker refused a transaction of {self._tool}: {reason.str()}. Its last transaction is undone; if "
                "no other run of it is going on, run it again."
            ) from error


def produce(producer: Producer, topic: str, *, partition: int, **record: Any) -> None:
    """Hand a record to the producer, waiting while its queue is full."""
    while True:
        try:
            producer.produce(topic, partition=partition, **record)
            return
        except BufferError:
            producer.poll(0.1)
