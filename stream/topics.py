"""Which topics the pipeline needs, and how those of a broker differ from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from stream.broker.topics import TopicInfo, TopicSpec, describe, describe_topics, ensure_topics
from stream.errors import TopicError
from stream.settings import Settings
from stream.wording import FRESH_START

SOURCE_MAX_BYTES = 1_048_588  # Kafka's default; stated, because the dead letters' limit is counted from it
DEAD_LETTER_EXTRA_BYTES = 64 << 10  # original bytes plus the headers that say why
WEEK_MS = 7 * 24 * 3_600_000
DAY_MS = WEEK_MS // 7


class Finding(NamedTuple):
    """One line of a check: what was looked at, and when it is not well what mends it."""

    level: Literal["ok", "warn", "fail"]
    message: str


def positions_topic(settings: Settings) -> str:
    """The internal topic in which tools remember how far they have come (stream/tool_positions.py)."""
    return f"{settings.topics.prefix}{settings.app_id}-positions"


def topic_specs(
    settings: Settings,
    source_partitions: int | None = None,
    groups_partitions: int | None = None,
    labels_partitions: int | None = None,
) -> list[TopicSpec]:
    """The topics as ``topics create`` makes them.

    Args:
        settings: names, copies, and partitions of topics that are new.
        source_partitions: of an input topic that exists already; the changelog must have as many.
        groups_partitions: of a topic of groups that exists already; likewise.
        labels_partitions: of a topic of labels that exists already; likewise.
    """
    partitions = source_partitions or settings.topics.partitions
    groups = groups_partitions or settings.groups.partitions
    labels = labels_partitions or settings.labels.partitions
    copies = settings.topics.replication_factor
    # With three copies one broker may fail and writes go on; with fewer it would stop them.
    safe = {"min.insync.replicas": "2"} if copies >= 3 else {}
    changelog = {
        "cleanup.policy": "compact",
        # Only closed segments are compacted: smaller and younger ones keep a restore short.
        "segment.bytes": str(64 << 20),
        "segment.ms": str(DAY_MS),
        "min.cleanable.dirty.ratio": "0.3",
        # An erased user's row is gone from the disk within a day, and a worker that was off for less than a
        # week still sees the tombstone.
        "max.compaction.lag.ms": str(DAY_MS),
        "delete.retention.ms": str(WEEK_MS),
    }
    dead_letters = {"max.message.bytes": str(SOURCE_MAX_BYTES + DEAD_LETTER_EXTRA_BYTES)}
    return [
        TopicSpec(
            settings.clicks_topic, partitions, {**safe, "max.message.bytes": str(SOURCE_MAX_BYTES)}, copies
        ),
        TopicSpec(settings.predictions_topic, partitions, safe, copies),
        TopicSpec(settings.dead_letters_topic, partitions, {**safe, **dead_letters}, copies),
        TopicSpec(settings.alerts_fraud_topic, partitions, safe, copies),
        TopicSpec(settings.alerts_churn_topic, partitions, safe, copies),
        TopicSpec(settings.changelog_topic, partitions, {**safe, **changelog}, copies),
        *(
            [
                TopicSpec(settings.groups_topic, groups, safe, copies),
                TopicSpec(settings.groups_changelog_topic, groups, {**safe, **changelog}, copies),
            ]
            if settings.groups.enabled
            else []
        ),
        *(
            [
                # Whoever was erased is gone from the disk within a day, as from the changelog.
                TopicSpec(settings.user_vectors_topic, partitions, {**safe, **changelog}, copies)
            ]
            if settings.user_vectors == "topic"
            else []
        ),
        TopicSpec(settings.control_topic, 1, {**safe, "cleanup.policy": "compact"}, copies),
        TopicSpec(positions_topic(settings), 1, {**safe, "cleanup.policy": "compact"}, copies),
        TopicSpec(settings.labels_topic, labels, safe, copies),
        *(
            [
                TopicSpec(settings.labels_changelog_topic, labels, {**safe, **changelog}, copies),
                TopicSpec(settings.alerts_audit_topic, labels, safe, copies),
            ]
            if settings.labels.enabled
            else []
        ),
    ]


def create(settings: Settings) -> list[str]:
    """Create what is missing; what exists stays. Gives the names that were created.

    Raises:
        TopicError: one exists with another number of partitions than its data needs.
        BrokerUnreachable: nobody answers.
    """
    client = settings.kafka.librdkafka()
    names = [spec.name for spec in topic_specs(settings)]
    found = describe_topics(client, names)
    specs = specs_beside(settings, found)
    partitions = {spec.name: spec.partitions for spec in specs}
    for name, source in _sources(settings).items():
        changelog = found.get(name)
        if changelog and changelog.partitions != partitions[source]:
            raise TopicError(_changelog_differs(settings, source, partitions[source], changelog))
    return ensure_topics(client, [spec for spec in specs if spec.name not in found])


def specs_beside(settings: Settings, found: Mapping[str, TopicInfo]) -> list[TopicSpec]:
    """The specifications, with as many partitions as the sources that are there have."""
    sources = (
        found.get(name) for name in (settings.clicks_topic, settings.groups_topic, settings.labels_topic)
    )
    return topic_specs(settings, *(source.partitions if source else None for source in sources))


def _sources(settings: Settings) -> dict[str, str]:
    """The source of each changelog."""
    found = {settings.changelog_topic: settings.clicks_topic}
    if settings.groups.enabled:
        found[settings.groups_changelog_topic] = settings.groups_topic
    if settings.labels.enabled:
        found[settings.labels_changelog_topic] = settings.labels_topic
    return found


def existing(settings: Settings, name: str) -> TopicInfo:
    """A topic as the broker has it; raises TopicError with the mending command when it is missing."""
    return describe(settings.kafka.librdkafka(), name)


def check(settings: Settings) -> list[Finding]:
    """Every difference between the broker's topics and what the pipeline needs; what is well is ``ok``.

    Raises:
        BrokerUnreachable: nobody answers.
    """
    specs = topic_specs(settings)
    found = describe_topics(settings.kafka.librdkafka(), [spec.name for spec in specs])
    return differences(settings, found)


def differences(settings: Settings, found: Mapping[str, TopicInfo]) -> list[Finding]:
    """As ``check``, over topics already described (by name; missing ones are absent)."""
    findings, few_copies = [], []
    for spec in specs_beside(settings, found):
        topic = found.get(spec.name)
        if topic is None:
            findings.append(
                Finding("fail", f"Topic {spec.name} does not exist. Create it: foreclick topics create")
            )
            continue
        if topic.replication_factor < 3:
            few_copies.append(f"{topic.name} {topic.replication_factor}")
        wrong = _wrong(settings, spec, topic, found)
        findings += wrong or [Finding("ok", f"Topic {spec.name}: {topic.partitions} partitions")]
    if few_copies:
        findings.append(
            Finding(
                "warn",
                f"Fewer than 3 copies ({', '.join(few_copies)}): a lost broker may lose data. In production raise "
                "them with kafka-reassign-partitions.sh; for new topics set FORECLICK_TOPICS__REPLICATION_FACTOR=3.",
            )
        )
    return findings


def _wrong(
    settings: Settings, spec: TopicSpec, topic: TopicInfo, found: Mapping[str, TopicInfo]
) -> list[Finding]:
    findings = []
    source = found.get(settings.clicks_topic)
    mirrored = found.get(_sources(settings).get(topic.name, ""))
    alter = f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.name} --add-config"
    if mirrored and topic.partitions != mirrored.partitions:
        findings.append(
            Finding("fail", _changelog_differs(settings, mirrored.name, mirrored.partitions, topic))
        )
    policy = spec.config.get("cleanup.policy", "delete")
    if policy == "compact" and topic.cleanup_policy != "compact":
        findings.append(
            Finding(
                "fail",
                f"Topic {topic.name} has cleanup.policy={topic.cleanup_policy}: rows older than its retention vanish. "
                f"Set it: {alter} cleanup.policy=compact",
            )
        )
    if policy == "delete" and "compact" in topic.cleanup_policy:
        findings.append(
            Finding(
                "fail",
                f"Topic {topic.name} has cleanup.policy={topic.cleanup_policy}: only the last record of a user would "
                f"stay. Set it: {alter} cleanup.policy=delete",
            )
        )
    needed = (source.max_message_bytes if source else SOURCE_MAX_BYTES) + DEAD_LETTER_EXTRA_BYTES
    if topic.name == settings.dead_letters_topic and topic.max_message_bytes < needed:
        findings.append(
            Finding(
                "fail",
                f"Topic {topic.name} takes {topic.max_message_bytes} bytes, a dead letter may have {needed}. "
                f"Set it: {alter} max.message.bytes={needed}",
            )
        )
    if topic.replication_factor >= 3 and topic.min_insync_replicas < 2:
        findings.append(
            Finding(
                "warn",
                f"Topic {topic.name} has min.insync.replicas={topic.min_insync_replicas}: a record may count as "
                f"written while one copy has it. Set it: {alter} min.insync.replicas=2",
            )
        )
    return findings


def fresh_start(settings: Settings, changelog: str) -> str:
    """How an operator forgets rows and position of the stage with this changelog and of no other, a sentence."""
    if changelog == settings.groups_changelog_topic:
        topics, group = f"{settings.groups_topic} and {changelog}", settings.groups_group
    elif changelog == settings.labels_changelog_topic:
        topics, group = changelog, settings.labels_group  # not the labels: people wrote them
    else:
        return FRESH_START
    return (
        f"Stop the workers, delete on the broker {topics} (kafka-topics.sh) and the group {group} "
        "(kafka-consumer-groups.sh), then run `foreclick topics create`. `foreclick state reset` would forget every "
        "user's rows too."
    )


def _changelog_differs(settings: Settings, source: str, partitions: int, changelog: TopicInfo) -> str:
    return (
        f"Topic {source} has {partitions} partitions, its changelog {changelog.name} has {changelog.partitions}: rows "
        f"would be looked for where they are not. {fresh_start(settings, changelog.name)}"
    )


def printable(findings: list[Finding]) -> dict[str, Any]:
    """Findings as plain values: the worst level, and each line."""
    levels = {finding.level for finding in findings}
    worst = "fail" if "fail" in levels else "warn" if "warn" in levels else "ok"
    return {"level": worst, "findings": [finding._asdict() for finding in findings]}
