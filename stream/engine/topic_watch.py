"""Whether the topics of an engine are still those that it was started with.

A topic that is deleted and created anew under the old name is another one: positions in the source, and the rows in the
changelog, speak of the old one, and nothing that a consumer or a producer of names sees tells the two apart. So their
ids (KIP-516) are asked for once a second and before a position is verified, and a worker that finds others ends; as it
starts again, positions are verified against the new ones (partition.py). So does one whose topic is gone for good: it
would own no partition and wait in silence; and one whose source was given more partitions: keys lead elsewhere then.
The same question tells how long the brokers have been away.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from stream.engine import wire
from stream.errors import TopicError

if TYPE_CHECKING:
    from stream.engine.kafka_log import TopicSet

LOOK_S = 1.0
ANSWER_S = 5.0
METADATA_S = 2.0
GONE_S = 20.0  # a broker that has just started answers before it knows all topics
_NO_ID = bytes(16)  # of a topic that the broker does not know, or not any more


class TopicWatch:
    """Asks for the ids of an engine's source and changelog.

    Args:
        options: of aiokafka's client: addresses and security.
        topics: with their ids as they were when the engine started.
        clock: gives seconds.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        topics: TopicSet,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._options, self._topics, self._clock = dict(options), topics, clock
        self._client: Any = None
        self._answered_s = clock()
        self._known_s = dict.fromkeys((topics.source, topics.changelog), self._answered_s)

    @property
    def unanswered_s(self) -> float:
        """Seconds since a broker has answered."""
        return self._clock() - self._answered_s

    async def start(self) -> None:
        self._client = AIOKafkaClient(**self._options)
        await self._client.bootstrap()

    async def stop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def run(self) -> None:
        """Look until stopped.

        Raises:
            TopicError: the source or the changelog is another topic now, or gone.
        """
        while self._client is not None:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Hold the ids of now against those of the start; a topic that a broker does not know may come yet.

        Nothing is asked before the start and after the stop: a worker that ends may be about to look once more.

        Raises:
            TopicError: as of ``run``, or one of them has more partitions now.
        """
        topics, client = self._topics, self._client
        if client is None:
            return
        asked = wire.topics_seen((topics.source, topics.changelog))
        try:
            answer = client.send(client.get_random_node(), asked)
            seen = await asyncio.wait_for(answer, ANSWER_S)
        except (KafkaError, OSError, TimeoutError):
            # Who needs the broker notices; here only its addresses may have changed, or it was stopped meanwhile.
            if self._client is not None:
                with contextlib.suppress(KafkaError, OSError, TimeoutError):
                    await asyncio.wait_for(client.force_metadata_update(), METADATA_S)
            return
        ids = {name: topic.id for name, topic in seen.items() if topic.id != _NO_ID}
        self._note(ids)
        if ids.get(topics.source, topics.source_id) != topics.source_id:
            raise TopicError(
                f"Topic {topics.source} was deleted and created anew while this worker ran: its positions speak of the "
                "old one. Start the worker again: it keeps the rows and reads the new topic from its beginning."
            )
        if ids.get(topics.changelog, topics.changelog_id) != topics.changelog_id:
            raise TopicError(
                f"Changelog {topics.changelog} was deleted and created anew while this worker ran: the new one does "
                "not hold the rows. Stop all workers, bring the old topic back from a copy if there is one, or begin "
                f"anew. {topics.fresh_start}"
            )
        if len(ids) == 2 and seen[topics.source].partitions != seen[topics.changelog].partitions:
            raise TopicError(
                f"Topic {topics.source} has {seen[topics.source].partitions} partitions by now, its changelog "
                f"{topics.changelog} has {seen[topics.changelog].partitions}: keys have moved away from their rows. "
                f"{topics.fresh_start}"
            )

    def _note(self, ids: Mapping[str, bytes]) -> None:
        """A broker has answered, and knows these topics.

        Raises:
            TopicError: one is not known for so long, by brokers that answer, that it is gone.
        """
        before_s, self._answered_s = self._answered_s, self._clock()
        for topic, known_s in self._known_s.items():
            if topic in ids:
                self._known_s[topic] = self._answered_s
            elif self._answered_s - before_s > ANSWER_S:
                self._known_s[topic] = self._answered_s  # brokers were away: theirs is a new start
            elif self._answered_s - known_s > GONE_S:
                raise TopicError(
                    f"Topic {topic} does not exist any more: it was deleted while this worker ran. If that was not "
                    "meant, stop whoever deletes it; foreclick topics create makes an empty one, which the worker "
                    "reads when it is started again."
                )
