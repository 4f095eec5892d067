"""What is wrong with this machine, broker, topics, input, model and data directory, and what mends it.

Each check gives findings and never raises for what it looks at: a broken broker must not hide a broken model.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import TopicPartition

from models.errors import ForeclickError, ModelError
from stream.activation import newest_first, refusal
from stream.broker.client import connect
from stream.broker.topics import TopicInfo
from stream.engine.store import lock_data_dir
from stream.errors import StoreError
from stream.events import Adapt, Event, Rejection, decode_events, unknown_fields
from stream.formats import adapt_object, record_adapter
from stream.local_rows import TABLE
from stream.settings import Settings
from stream.topic_reader import Bounds, CommittedRecord, bounds, read, read_all, reader
from stream.topics import Finding, check, existing

SAMPLE_RECORDS = 1000
SUSPECT_SHARE = 0.01  # of dead letters: below it there is always some dirt
MANY_WAITING = 1_000_000  # records that a stage has not read
FREE_BYTES_WARN = 1 << 30

YEAR_2000_MS = 946_684_800_000  # seconds taken for milliseconds lie in 1970

_decode = msgspec.json.Decoder().decode


def diagnose(settings: Settings) -> Iterator[Finding]:
    """All checks, in the order in which their trouble should be mended."""
    answered = guarded(lambda: broker(settings))
    yield from answered
    if not any(finding.level == "fail" for finding in answered):
        yield from guarded(lambda: check(settings))
        yield from guarded(lambda: sample(settings))
        yield from guarded(lambda: second_stage(settings))
        yield from guarded(lambda: labels_stage(settings))
        yield from guarded(lambda: activated(settings))
    yield from guarded(lambda: model(settings))
    yield from guarded(lambda: data_directory(settings.data_dir))


def guarded(checks: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings, or the error that kept them from being made."""
    try:
        return list(checks())
    except ForeclickError as error:
        return [Finding("fail", str(error))]


def broker(settings: Settings) -> Iterator[Finding]:
    """Whether it answers, and how many nodes it has."""
    metadata = connect(settings.kafka.librdkafka()).list_topics(timeout=10)
    nodes = len(metadata.brokers)
    where = f"Kafka at {settings.kafka.bootstrap_servers}: {nodes} broker{'s' if nodes > 1 else ''}"
    if nodes < 3:
        yield Finding("warn", f"{where}: what a single one loses cannot be mended. In production run three.")
    else:
        yield Finding("ok", where)


def sample(settings: Settings) -> list[Finding]:
    """The newest records of the input, as the pipeline would judge them."""
    source = existing(settings, settings.clicks_topic)
    records = list(newest(settings, source, SAMPLE_RECORDS))
    keys, values = [record.key for record in records], [record.value for record in records]
    adapt = record_adapter(settings.input_format)
    findings = judge(keys, values, source.name, adapt)
    decoded = decode_events(keys, values, adapt)
    times_ms = [event.event_time_ms for event in decoded if isinstance(event, Event)]
    return findings + judge_times(
        times_ms, source.name, int(time.time() * 1000), settings.future_limit_s * 1000
    )


def newest(settings: Settings, topic: TopicInfo, count: int) -> Iterator[CommittedRecord]:
    """About ``count`` of the newest records, spread over the partitions."""
    each = max(1, count // topic.partitions)
    with reader(settings.kafka.librdkafka()) as consumer:
        stretches = {
            number: Bounds(max(found.start, found.end - each), found.end)
            for number, found in bounds(consumer, topic.name, topic.partitions).items()
        }
        yield from read(consumer, topic.name, stretches)


def second_stage(settings: Settings) -> list[Finding]:
    """Whether groups are told and read."""
    groups = settings.groups
    if not groups.enabled:
        return [Finding("ok", "No second stage: FORECLICK_GROUPS__ENABLED is false")]
    waiting = unread(settings, settings.groups_topic, settings.groups_group)
    text = f"Second stage over {settings.groups_topic} ({groups.kinds}): about {waiting} records are not read yet"
    if waiting > MANY_WAITING:
        return [Finding("warn", f"{text}. Start more workers, or tell it less: FORECLICK_GROUPS__KINDS")]
    return [Finding("ok", text)]


def labels_stage(settings: Settings) -> list[Finding]:
    """Whether labels are read."""
    if not settings.labels.enabled:
        return [Finding("ok", "Nobody reads labels: FORECLICK_LABELS__ENABLED is false")]
    waiting = unread(settings, settings.labels_topic, settings.labels_group)
    text = f"Labels in {settings.labels_topic}: about {waiting} records are not read yet"
    return [Finding("warn", f"{text}. Start a worker") if waiting > MANY_WAITING else Finding("ok", text)]


def unread(settings: Settings, name: str, group_id: str) -> int:
    """About how many records of a topic a group has not committed; markers of transactions count as records."""
    topic = existing(settings, name)
    with reader(settings.kafka.librdkafka(), committed=False, group_id=group_id) as consumer:
        ends = bounds(consumer, topic.name, topic.partitions)
        places = [TopicPartition(topic.name, number) for number in ends]
        read_to = {place.partition: place.offset for place in consumer.committed(places, timeout=10)}
    return sum(max(0, found.end - max(found.start, read_to[number], 0)) for number, found in ends.items())


def judge(
    keys: list[bytes | None], values: list[bytes | None], topic: str, adapt: Adapt = adapt_object
) -> list[Finding]:
    """What would become of records of the input, and why."""
    if not keys:
        return [Finding("ok", f"Topic {topic} has no records to look at yet")]
    decoded = decode_events(keys, values, adapt)
    rejected = [event for event in decoded if isinstance(event, Rejection)]
    reasons = Counter(rejection.reason for rejection in rejected)
    findings = []
    text = f"Of {len(keys)} records of {topic}, {len(rejected)} would be dead letters"
    if rejected:
        common = reasons.most_common(1)[0][0]
        example = next(rejection.message for rejection in rejected if rejection.reason == common)
        counted = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        text += f": {counted}. For example: {example}"
    findings.append(Finding("warn" if len(rejected) > SUSPECT_SHARE * len(keys) else "ok", text))
    foreign = sum(_keyed_by_another(event, value) for event, value in zip(decoded, values, strict=True))
    if foreign:
        findings.append(
            Finding(
                "fail" if foreign > len(keys) / 2 else "warn",
                f"{foreign} of {len(keys)} records of {topic} have no key or one that is not the user. Copy the topic "
                f"to one keyed by user: foreclick rekey --from {topic} --to {topic}-by-user, and set "
                f"FORECLICK_TOPICS__CLICKS={topic}-by-user",
            )
        )
    unknown = Counter(
        name
        for event, value in zip(decoded, values, strict=True)
        if isinstance(event, Event) and value is not None
        for name in unknown_fields(value)
    )
    if unknown:
        names = ", ".join(f"{name} {count}" for name, count in unknown.most_common(5))
        findings.append(Finding("ok", f"Fields that the model does not see: {names}"))
    return findings


def judge_times(times_ms: Sequence[int], topic: str, now_ms: int, future_limit_ms: int) -> list[Finding]:
    """What the events' own times say of clocks and units; nothing when they are plausible.

    Args:
        now_ms: of this machine's clock, which a worker here would go by.
    """
    findings = []
    if ahead := [each for each in times_ms if each > now_ms + future_limit_ms]:
        furthest_s = (max(ahead) - now_ms) // 1000
        findings.append(
            Finding(
                "fail" if len(ahead) > len(times_ms) / 2 else "warn",
                f"{len(ahead)} of {len(times_ms)} events of {topic} are ahead of this machine's clock, by up to "
                f"{furthest_s:,} s: a worker here makes them dead letters, `future`. Set the clock that is wrong, this "
                "one (date -u) or the producer's; if it was this one, then: foreclick dlq replay --reason future",
            )
        )
    if early := [each for each in times_ms if each < YEAR_2000_MS]:
        findings.append(
            Finding(
                "warn",
                f"{len(early)} of {len(times_ms)} events of {topic} are from before the year 2000, such as "
                f"event_time_ms {early[0]}. Seconds instead of milliseconds make all pauses a thousandth and end no "
                "session: mend the producer",
            )
        )
    return findings


def _keyed_by_another(event: Event | Rejection | None, value: bytes | None) -> bool:
    if not isinstance(event, Rejection) or event.reason not in ("missing_key", "key_mismatch"):
        return False
    if event.reason == "key_mismatch":
        return True
    try:  # without a key nothing was decoded: only a record that names its user can be rekeyed
        document: Any = _decode(value or b"")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return isinstance(document, dict)


def model(settings: Settings) -> Iterator[Finding]:
    """Whether it loads with every check of the registry."""
    from models.registry import bundled, load_artefact  # torch takes a second to load

    folder = settings.model or bundled()
    artefact = load_artefact(folder)
    yield Finding("ok", f"Model {artefact.name}/{artefact.version} in {folder}")


def activated(settings: Settings) -> list[Finding]:
    """Whether a worker that starts here could serve what was activated last."""
    control = existing(settings, settings.control_topic)
    records = read_all(settings.kafka.librdkafka(), control.name, control.partitions)
    return list(judge_activated([record.value for record in records], settings.model_root))


def judge_activated(records: Iterable[bytes | None], model_root: Path | None) -> Iterator[Finding]:
    """The same of the values of the control topic, with models in ``model_root`` or where who asked saw them."""
    from models.registry import load_artefact

    asked = next(iter(newest_first(records)), None)
    if asked is None:
        return
    folder = asked.folder(model_root)
    try:
        because = refusal(load_artefact(folder).manifest, asked.sha256)
    except ModelError as error:
        because = str(error)
    if because is None:
        yield Finding("ok", f"Activated is {asked.label} in {folder}")
    else:
        yield Finding(
            "warn",
            f"Activated is {asked.label}, which a worker that starts here refuses: {because} It would serve an older "
            "activation or FORECLICK_MODEL. Copy the model to where FORECLICK_MODEL_ROOT says, or activate another: "
            "foreclick models activate",
        )


def data_directory(folder: Path) -> Iterator[Finding]:
    """Whether it can be written, who holds it, and how much room is left."""
    try:
        lock_data_dir(folder / TABLE).close()
    except StoreError as error:
        # Without an operating system's error behind it, another process holds it: a worker that runs is no fault.
        yield Finding("fail" if isinstance(error.__cause__, OSError) else "warn", str(error))
        if not folder.is_dir():
            return
    else:
        yield Finding("ok", f"Data directory {folder} can be written")
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES_WARN:
        yield Finding(
            "warn",
            f"Data directory {folder} has {free >> 20} MiB left: a full disk ends the worker. Free space, or set "
            "FORECLICK_DATA_DIR.",
        )
    else:
        yield Finding("ok", f"{free >> 30} GiB free, {os.cpu_count()} processors")
