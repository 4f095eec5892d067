r"""A fresh start: the operator's word that state and position are to be forgotten together.

1. Refuse while the group has members or this data directory has a worker.
2. Delete the group's offsets.
3. Recreate the changelog, empty, with the settings it had and as many partitions as the source.
4. For ``latest``: per partition, in one transaction under the worker's own transactional id (which fences a zombie),
   ``\0src`` and the group's offset at the topic's end. For ``earliest`` nothing: without both, a partition starts at
   the beginning.
5. Recreate the topic of groups and its changelog, and forget that group too: what clicks tell the second stage would
   otherwise stand there twice. It begins empty either way.
6. Labels stay, and what is known of their orders and alerts: people wrote them, and what stages tell a second time
   changes no count. Only where their changelog is empty their group is forgotten, so that they are read anew.
7. Wipe the local rows of this machine. Those of other machines belong to the old changelog, whose topic id they
   carry: their workers wipe them when they start.

An interruption leaves a state that a second call mends: each step may be repeated.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from stream.broker.client import connect
from stream.broker.topics import TopicInfo, TopicSpec, describe_topics, recreate_topics
from stream.engine.store import lock_data_dir
from stream.errors import StoreError, TopicError
from stream.local_rows import GROUPS_TABLE, TABLE
from stream.replay import producer_of
from stream.settings import Settings
from stream.stage import SOURCE_KEY, SourceMark
from stream.topic_reader import bounds, reader
from stream.topics import existing, specs_beside

REQUEST_TIMEOUT_S = 30.0
# A broker that has just started has not loaded all groups: who coordinates one shows a moment later.
COORDINATOR_MOVES = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
}
COORDINATOR_PAUSE_S = 0.2
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
    if settings.groups.enabled:
        _refuse_members(admin, settings.groups_group)
    if settings.labels.enabled:
        _refuse_members(admin, settings.labels_group)
    held = lock_data_dir(settings.data_dir / TABLE)
    try:
        _forget_group(admin, settings.app_id)
        recreate_topics(client, _kept_specs(settings, [settings.changelog_topic], client))
        positions = (
            _begin_at_end(settings, source) if to == "latest" else dict.fromkeys(range(source.partitions))
        )
        if settings.groups.enabled:
            _forget_group(admin, settings.groups_group)
            names = [settings.groups_topic, settings.groups_changelog_topic]
            recreate_topics(client, _kept_specs(settings, names, client))
        if settings.labels.enabled and not _has_rows(client, settings.labels_changelog_topic):
            _forget_group(admin, settings.labels_group)
        for table in (TABLE, GROUPS_TABLE):
            _wipe(settings, table)
    finally:
        held.close()
    return positions


def _refuse_members(admin: AdminClient, group: str) -> None:
    described = _outcome(
        lambda: admin.describe_consumer_groups([group])[group], missing=KafkaError.GROUP_ID_NOT_FOUND
    )
    if described is not None and described.members:
        hosts = ", ".join(sorted({member.host.lstrip("/") for member in described.members}))
        raise TopicError(
            f"Group {group} has {len(described.members)} members (on {hosts}). Stop the workers, then run "
            "`foreclick state reset` again."
        )


def _forget_group(admin: AdminClient, group: str) -> None:
    _outcome(lambda: admin.delete_consumer_groups([group])[group], missing=KafkaError.GROUP_ID_NOT_FOUND)


def _kept_specs(settings: Settings, names: list[str], client: Mapping[str, Any]) -> list[TopicSpec]:
    """The topics as they are to be made again: with what an operator tuned, and the partitions of their source."""
    sources = [settings.clicks_topic, *([settings.groups_topic] if settings.groups.enabled else [])]
    present = describe_topics(client, [*names, *sources])
    return [
        fresh
        if fresh.name not in present
        else TopicSpec(
            fresh.name,
            fresh.partitions,
            {
                **{key: each for key, each in present[fresh.name].config.items() if key in KEPT_SETTINGS},
                **{key: each for key, each in fresh.config.items() if key == "cleanup.policy"},
            },
            present[fresh.name].replication_factor,
        )
        for fresh in specs_beside(settings, present)
        if fresh.name in names
    ]


def _has_rows(client: Mapping[str, Any], changelog: str) -> bool:
    """Whether anything was ever written to a changelog."""
    found = describe_topics(client, [changelog]).get(changelog)
    if found is None:
        return False
    with reader(client) as consumer:
        return any(each.end for each in bounds(consumer, found.name, found.partitions).values())


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


def _wipe(settings: Settings, table: str) -> None:
    for folder in (settings.data_dir / table).glob("*"):
        if folder.name.isdigit():
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise StoreError(
                    f"{folder} cannot be removed: {error.strerror}. Remove it by hand: rm -r {folder}"
                ) from error


def _outcome(ask: Callable[[], Future[Any]], missing: int) -> Any:
    """The answer, or None when the broker says that there is nothing of that name."""
    deadline_s = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        try:
            return ask().result(timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() == missing:
                return None
            if reason.code() not in COORDINATOR_MOVES or time.monotonic() > deadline_s:
                raise TopicError(f"The broker refused: {reason.str()} ({reason.name()}).") from error
        time.sleep(COORDINATOR_PAUSE_S)
