r"""A fresh start: the operator's word that state and position are to be forgotten together.

1. Refuse while the group has members or this data directory has a worker.
2. Delete the group's offsets.
3. Recreate the changelog, empty, with the settings it had and as many partitions as the source.
4. For ``latest``: per partition, in one transaction under the worker's own transactional id (which fences a zombie),
   ``\0src`` and the group's offset at the topic's end. For ``earliest`` nothing: without both, a partition starts at
   the beginning.
5. Wipe the local rows of this machine. Those of other machines belong to the old changelog, whose topic id they
   carry: their workers wipe them when they start.

An interruption leaves a state that a second call mends: each step may be repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from stream.broker.client import connect
from stream.broker.topics import TopicInfo, TopicSpec, describe_topics, recreate_topics
from stream.engine.store import lock_data_dir
from stream.errors import StoreError, TopicError
from stream.local_rows import TABLE
from stream.replay import producer_of
from stream.settings import Settings
from stream.stage import SOURCE_KEY, SourceMark
from stream.topic_reader import bounds, reader
from stream.topics import existing, topic_specs

REQUEST_TIMEOUT_S = 30.0
# What an operator may have tuned; the rest of a topic's settings are the broker's to choose.
KEPT_SETTINGS = (
    "cleanup.policy",
    "compression.type",
    "delete.retention.ms",
    "max.compaction.lag.ms",
    "max.message.bytes",
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
    "min.insync.replicas",
    "segment.bytes",
    "segment.ms",
)


def reset(settings: Settings, to: Literal["earliest", "latest"]) -> dict[int, int | None]:
    """Forget all rows, and begin at the source's beginning or end.

    Returns:
        Where each partition will open; None is its beginning.

    Raises:
        TopicError: workers are in the group, or the broker refuses.
        StoreError: a worker holds the data directory.
    """
    client = settings.kafka.librdkafka()
    source = existing(settings, settings.clicks_topic)
    admin = connect(client)
    _refuse_members(admin, settings.app_id)
    held = lock_data_dir(settings.data_dir / TABLE)
    try:
        _forget_group(admin, settings.app_id)
        recreate_topics(client, [_changelog_spec(settings, source, client)])
        positions = (
            _begin_at_end(settings, source) if to == "latest" else dict.fromkeys(range(source.partitions))
        )
        _wipe(settings)
    finally:
        held.close()
    return positions


def _refuse_members(admin: AdminClient, group: str) -> None:
    described = _outcome(
        admin.describe_consumer_groups([group])[group], missing=KafkaError.GROUP_ID_NOT_FOUND
    )
    if described is not None and described.members:
        hosts = ", ".join(sorted({member.host.lstrip("/") for member in described.members}))
        raise TopicError(
            f"Group {group} has {len(described.members)} members (on {hosts}). Stop the workers, then run "
            "`foreclick state reset` again."
        )


def _forget_group(admin: AdminClient, group: str) -> None:
    _outcome(admin.delete_consumer_groups([group])[group], missing=KafkaError.GROUP_ID_NOT_FOUND)


def _changelog_spec(settings: Settings, source: TopicInfo, client: Mapping[str, Any]) -> TopicSpec:
    name = settings.changelog_topic
    present = describe_topics(client, [name]).get(name)
    (fresh,) = [spec for spec in topic_specs(settings, source.partitions) if spec.name == name]
    if present is None:
        return fresh
    kept = {key: present.config[key] for key in KEPT_SETTINGS if key in present.config}
    return TopicSpec(
        name, source.partitions, {**kept, "cleanup.policy": "compact"}, present.replication_factor
    )


def _begin_at_end(settings: Settings, source: TopicInfo) -> dict[int, int | None]:
    client = settings.kafka.librdkafka()
    with reader(client) as consumer:
        ends = {
            number: found.end for number, found in bounds(consumer, source.name, source.partitions).items()
        }
    group = Consumer({**client, "group.id": settings.app_id, "enable.auto.commit": False, "log_level": 0})
    try:
        metadata = group.consumer_group_metadata()
        for number, end in ends.items():
            mark = SourceMark(end, source.topic_id, 0)
            producer = producer_of(
                client, **{"transactional.id": f"{settings.app_id}-{source.name}-{number}"}
            )
            producer.init_transactions(REQUEST_TIMEOUT_S)
            producer.begin_transaction()
            producer.produce(settings.changelog_topic, key=SOURCE_KEY, value=mark.encode(), partition=number)
            producer.send_offsets_to_transaction([TopicPartition(source.name, number, end)], metadata)
            producer.commit_transaction(REQUEST_TIMEOUT_S)
    except KafkaException as error:
        raise TopicError(
            f"The broker refused the new positions: {error.args[0].str()}. Run `foreclick state reset` again; the "
            "workers would not start before."
        ) from error
    finally:
        group.close()
    return dict(ends)


def _wipe(settings: Settings) -> None:
    for folder in (settings.data_dir / TABLE).glob("*"):
        if folder.name.isdigit():
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise StoreError(
                    f"{folder} cannot be removed: {error.strerror}. Remove it by hand: rm -r {folder}"
                ) from error


def _outcome(future: Future[Any], missing: int) -> Any:
    """The answer, or None when the broker says that there is nothing of that name."""
    try:
        return future.result(timeout=REQUEST_TIMEOUT_S)
    except KafkaException as error:
        reason = error.args[0]
        if reason.code() == missing:
            return None
        raise TopicError(f"The broker refused: {reason.str()} ({reason.name()}).") from error
