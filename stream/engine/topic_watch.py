"""Whether the topics of an engine are still those that it was started with.

A topic that is deleted and created anew under the old name is another one: positions in the source, and the rows in the
changelog, speak of the old one, and nothing that a consumer or a producer of names sees tells the two apart. So their
ids (KIP-516) are asked for once a second and before a position is verified, and a worker that finds others ends; as it
starts again, positions are verified against the new ones (partition.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from stream.engine import wire
from stream.errors import TopicError

if TYPE_CHECKING:
    from stream.engine.kafka_log import TopicSet

LOOK_S = 1.0
ANSWER_S = 5.0
_NO_ID = bytes(16)  # of a topic that the broker does not know, or not any more


class TopicWatch:
    """Asks for the ids of an engine's source and changelog.

    Args:
        options: of aiokafka's client: addresses and security.
        topics: with their ids as they were when the engine started.
    """

    def __init__(self, options: Mapping[str, Any], topics: TopicSet):
        self._options, self._topics = dict(options), topics
        self._client: Any = None

    async def start(self) -> None:
        self._client = AIOKafkaClient(**self._options)
        await self._client.bootstrap()

    async def stop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def run(self) -> None:
        """Look until cancelled.

        Raises:
            TopicError: the source or the changelog is another topic now.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Hold the ids of now against those of the start; a topic that a broker does not know tells nothing.

        Raises:
            TopicError: as of ``run``.
        """
        topics = self._topics
        asked = wire.topic_ids((topics.source, topics.changelog))
        try:
            answer = self._client.send(self._client.get_random_node(), asked)
            ids = await asyncio.wait_for(answer, ANSWER_S)
        except (KafkaError, OSError, TimeoutError):
            return  # nor does a broker that is away; who needs it notices
        if ids.get(topics.source, _NO_ID) not in (_NO_ID, topics.source_id):
            raise TopicError(
                f"Topic {topics.source} was deleted and created anew while this worker ran: its positions speak of the "
                "old one. Start the worker again: it keeps the rows and reads the new topic from its beginning."
            )
        if ids.get(topics.changelog, _NO_ID) not in (_NO_ID, topics.changelog_id):
            raise TopicError(
                f"Changelog {topics.changelog} was deleted and created anew while this worker ran: the new one does "
                "not hold the rows. Stop all workers, bring the old topic back from a copy if there is one, or begin "
                "anew with `foreclick state reset`."
            )
