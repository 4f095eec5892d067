"""The ceiling: consume, score in micro-batches, produce, with nothing kept but a dict in memory.

    python -m tests.bench.peers.ceiling_loop SETTINGS_JSON

The pipeline's own decoding, fold, model step and rendering, the fastest that there are for this work, between
confluent-kafka's consumer and producer. Rows die with the process, offsets are committed by a timer, no transaction, no
changelog, no RocksDB: what the pipeline is slower by is what durability costs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch
from confluent_kafka import Consumer, KafkaException, Message, Producer

from models.registry import load_artefact
from models.runtime import StepEngine
from stream.clicks_stage import clicks_rounds, clicks_work
from stream.model_step import ServedModel
from stream.offline import OfflineRecord
from stream.scoring import ClicksRequest
from stream.settings import Settings
from tests.bench.parent import end_with_parent
from tests.bench.peers.settings import PeerSettings

MICRO_BATCH = 4096


class CeilingLoop:
    """Records of any partitions in, messages of the predictions topic out; rows in a dict."""

    def __init__(self, settings: Settings, model: Path, topic_id: bytes):
        artefact = load_artefact(model)
        served = ServedModel(artefact, StepEngine(artefact, device="cpu"))
        topic = settings.clicks_topic
        self._predictions = settings.predictions_topic
        self._rounds = clicks_rounds(settings, lambda: served, topic=topic, topic_id=topic_id)
        self._works = [
            clicks_work(settings, topic=topic, topic_id=topic_id, partition=number, score=_never)
            for number in range(settings.topics.partitions)
        ]
        self._rows: dict[bytes, bytes | None] = {}

    def __call__(self, records: dict[int, list[OfflineRecord]]) -> Iterable[tuple[Any, bytes, Any]]:
        """Key, value and headers of each prediction of a micro-batch; records by partition, by offset."""
        rows, requests = self._rows, []
        for partition, batch in records.items():
            decoded = self._works[partition].decode(batch)
            requests.append(
                ClicksRequest(self._works[partition], decoded, [rows.get(key) for key in decoded.keys], None)
            )
        folded = self._rounds.fold(requests)
        for rendered in self._rounds.render(folded, self._rounds.step(folded)):
            # Names that a partition remembers go to its store; here they stay in its ``names``.
            rows.update((key, row) for key, row in rendered.rows if not key.startswith(b"\0"))
            yield from rendered.messages.get(self._predictions, ())


async def _never(request: ClicksRequest) -> Any:
    raise NotImplementedError("The loop takes its requests through the rounds itself.")


def by_partition(messages: Iterable[Message]) -> dict[int, list[OfflineRecord]]:
    """Consumed messages as records, in the order in which each partition had them."""
    records: dict[int, list[OfflineRecord]] = {}
    for message in messages:
        if message.error() is not None:
            raise KafkaException(message.error())
        record = OfflineRecord(message.offset(), message.key(), message.value(), (), message.timestamp()[1])
        records.setdefault(message.partition(), []).append(record)
    return records


def main() -> None:
    """Run the loop in this process."""
    from stream.settings import load_settings
    from tests.bench.bed import SCORES_ONLY

    end_with_parent()
    torch.set_num_threads(1)
    peer = msgspec.json.decode(sys.argv[1], type=PeerSettings)
    settings = load_settings(
        {},
        app_id=peer.app_id,
        topics__clicks=peer.clicks_topic,
        topics__predictions=peer.predictions_topic,
        topics__partitions=peer.partitions,
        **SCORES_ONLY,
    )
    loop = CeilingLoop(settings, Path(peer.model), bytes.fromhex(peer.topic_id))
    consumer = Consumer(
        {
            "bootstrap.servers": peer.bootstrap_servers,
            "group.id": peer.app_id,
            "auto.offset.reset": "earliest",
            "auto.commit.interval.ms": int(peer.commit_interval_s * 1000),
            "session.timeout.ms": int(peer.session_timeout_s * 1000),
        }
    )
    # As much linger as latency does not notice; the partitioner is Kafka's own.
    producer = Producer(
        {
            "bootstrap.servers": peer.bootstrap_servers,
            "linger.ms": 5,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 500_000,
        }
    )
    consumer.subscribe([peer.clicks_topic])
    topic = peer.predictions_topic
    with torch.inference_mode():
        while True:
            first = consumer.poll(1.0)
            if first is None:
                continue
            # What stands ready beside it: under load a full micro-batch, otherwise no wait for one.
            messages = [first, *consumer.consume(MICRO_BATCH - 1, 0)]
            for key, value, headers in loop(by_partition(messages)):
                while True:
                    try:
                        producer.produce(topic, value, key, headers=headers)
                        break
                    except BufferError:
                        producer.poll(0.1)
            producer.poll(0)


if __name__ == "__main__":
    main()
