"""Commands against a real broker: topics, replay, dead letters, rekey, state and doctor."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from stream.broker import Broker
from stream.broker.topics import delete_topics, describe, describe_topics
from stream.dead_letters import REPLAYED_HEADER, dead_letter
from stream.engine.store import Store
from stream.settings import Settings, load_settings
from stream.stage import SOURCE_KEY, SourceMark
from stream.tool_positions import ToolPositions, produce
from stream.topic_reader import CommittedRecord, read_all
from stream.topics import create, topic_specs
from tests.command_line import Ran, foreclick

pytestmark = pytest.mark.broker

PARTITIONS = 3


@pytest.fixture
def settings(broker: Broker, tmp_path: Path) -> Iterator[Settings]:
    """Topics and a data directory of this test alone."""
    name = f"c{uuid.uuid4().hex[:8]}"
    made = load_settings(
        {},
        kafka__bootstrap_servers=broker.bootstrap_servers,
        topics__prefix=f"{name}.",
        topics__partitions=PARTITIONS,
        app_id=name,
        data_dir=tmp_path / "data",
    )
    create(made)
    yield made
    delete_topics(made.kafka.librdkafka(), [spec.name for spec in topic_specs(made)])


def command(settings: Settings, *arguments: object) -> Ran:
    return foreclick(
        *arguments,
        "--json",
        KAFKA__BOOTSTRAP_SERVERS=settings.kafka.bootstrap_servers,
        TOPICS__PREFIX=settings.topics.prefix,
        TOPICS__PARTITIONS=PARTITIONS,
        APP_ID=settings.app_id,
        DATA_DIR=settings.data_dir,
    )


def records(settings: Settings, topic: str) -> list[CommittedRecord]:
    client = settings.kafka.librdkafka()
    return list(read_all(client, topic, describe(client, topic).partitions))


def send(settings: Settings, topic: str, **record: Any) -> None:
    producer = Producer({**settings.kafka.librdkafka(), "log_level": 0})
    producer.produce(topic, **record)
    assert producer.flush(30) == 0


def click(user: str, number: int) -> bytes:
    event = {"user_id": user, "event_time_ms": 1_700_000_000_000 + number * 1000, "action": "view"}
    return json.dumps(event | {"event_id": f"e{number}"}).encode()


# ---- topics


def test_topics_are_created_once_and_then_well(settings: Settings) -> None:
    """A second ``create`` does nothing, and ``check`` finds nothing but the copies of a single broker."""
    names = [spec.name for spec in topic_specs(settings)]
    delete_topics(settings.kafka.librdkafka(), names)
    assert sorted(command(settings, "topics", "create").json["created"]) == sorted(names)
    assert command(settings, "topics", "create").json == {"created": [], "existed": names}
    checked = command(settings, "topics", "check")
    assert checked.code == 0
    assert {finding["level"] for finding in checked.json["findings"]} == {"ok", "warn"}


def test_a_missing_topic_fails_the_check_and_the_replay(settings: Settings, tmp_path: Path) -> None:
    """Both name the topic and the command that creates it; nothing creates it by accident."""
    delete_topics(settings.kafka.librdkafka(), [settings.clicks_topic])
    checked = command(settings, "topics", "check")
    assert checked.code == 1
    assert checked.json["level"] == "fail"
    (tmp_path / "log").write_bytes(click("u", 1))
    ran = command(settings, "replay", tmp_path / "log")
    assert ran.code == 1
    assert f"Topic {settings.clicks_topic} does not exist" in ran.error
    assert "foreclick topics create" in ran.error
    assert describe_topics(settings.kafka.librdkafka(), [settings.clicks_topic]) == {}


# ---- replay


def test_a_replay_sends_every_line_in_order_keyed_by_its_user(settings: Settings, tmp_path: Path) -> None:
    """Also a line that is no event, under an empty key: its fault is the pipeline's to name."""
    users = [f"u{number % 5}" for number in range(500)]
    values = [click(user, number) for number, user in enumerate(users)]
    (tmp_path / "log").write_bytes(b"\n".join([*values, b"not json"]))
    ran = command(settings, "replay", tmp_path / "log", "--order", "file")
    assert (ran.json["sent"], ran.json["topic"]) == (501, settings.clicks_topic)
    found = records(settings, settings.clicks_topic)
    assert sorted(record.value or b"" for record in found) == sorted([*values, b"not json"])
    for user in set(users):
        own = [record for record in found if record.key == user.encode()]
        assert len({record.partition for record in own}) == 1
        assert [record.value for record in own] == [
            v for u, v in zip(users, values, strict=True) if u == user
        ]


def test_partitions_are_those_of_java_clients(settings: Settings, tmp_path: Path) -> None:
    """murmur2 of the key, as Kafka's own default partitioner has it."""
    (tmp_path / "log").write_bytes(click("21", 1) + b"\n" + click("foobar", 2))
    command(settings, "replay", tmp_path / "log")
    partition = {record.key: record.partition for record in records(settings, settings.clicks_topic)}
    # Kafka's own test vectors: murmur2("21") = -973932308, murmur2("foobar") = -790332482.
    assert partition[b"21"] == (-973932308 & 0x7FFFFFFF) % PARTITIONS
    assert partition[b"foobar"] == (-790332482 & 0x7FFFFFFF) % PARTITIONS


# ---- dead letters


@pytest.fixture
def letters(settings: Settings) -> list[str]:
    """Nine dead letters, three of each reason, from partition 1 of the source; their keys."""
    keys = [f"u{number}" for number in range(9)]
    for number, key in enumerate(keys):
        reason = ("late", "wrong_type", "key_mismatch")[number % 3]
        kept = [("trace", b"t1"), (REPLAYED_HEADER, b"an older replay")]
        raw_key, value, headers = dead_letter(
            settings.clicks_topic, 1, number, key.encode(), b"\xff" + key.encode(), reason, "why", kept
        )
        send(
            settings,
            settings.dead_letters_topic,
            key=raw_key,
            value=value,
            headers=headers,
            partition=number % 2,
        )
    return keys


def test_dead_letters_are_listed_and_shown(settings: Settings, letters: list[str]) -> None:
    """Counts by reason, the newest last, and one of them whole."""
    listed = command(settings, "dlq", "list", "--limit", 4).json
    assert listed["by_reason"] == {"late": 3, "wrong_type": 3, "key_mismatch": 3}
    assert [each["key"] for each in listed["newest"]] == letters[-4:]
    assert command(settings, "dlq", "list", "--reason", "late").json["dead_letters"] == 3
    newest = listed["newest"][-1]
    shown = command(settings, "dlq", "show", newest["partition"], newest["offset"]).json
    assert shown == newest
    assert shown["source"] == {"topic": settings.clicks_topic, "partition": 1, "offset": 8}
    assert shown["headers"] == {"trace": "t1"}
    ran = command(settings, "dlq", "show", 2, 0)
    assert ran.code == 1
    assert "There is no dead letter at" in ran.error


def test_each_dead_letter_is_replayed_once_ever(settings: Settings, letters: list[str]) -> None:
    """By reason, by limit, then all: original bytes and headers, in their own partition, marked as replayed."""
    assert command(settings, "dlq", "replay", "--reason", "wrong_type", "--limit", 2).json["replayed"] == 2
    assert command(settings, "dlq", "replay", "--limit", 3).json["replayed"] == 3
    assert command(settings, "dlq", "replay").json["replayed"] == 4
    assert command(settings, "dlq", "replay").json == {
        "replayed": 0,
        "by_reason": {},
        "topic": settings.clicks_topic,
    }
    found = records(settings, settings.clicks_topic)
    assert sorted((record.key or b"").decode() for record in found) == letters
    for record in found:
        assert record.value == b"\xff" + (record.key or b"")
        assert record.partition == 1
        (trace, replayed) = record.headers
        assert trace == ("trace", b"t1")
        assert replayed[0] == REPLAYED_HEADER
        assert (replayed[1] or b"").startswith(settings.dead_letters_topic.encode() + b"/")


def test_a_replay_that_dies_in_its_transaction_is_undone_by_the_next(
    settings: Settings, letters: list[str]
) -> None:
    """Records and memory are one transaction: the next run fences it and sends each letter once."""
    dying = ToolPositions(settings, "dlq-replay")
    dying.producer.begin_transaction()
    produce(dying.producer, settings.clicks_topic, partition=1, key=b"u0", value=b"half a replay")
    dying.producer.flush(10)
    assert command(settings, "dlq", "replay").json["replayed"] == 9
    found = records(settings, settings.clicks_topic)
    assert sorted((record.key or b"").decode() for record in found) == letters
    assert all(record.value != b"half a replay" for record in found)


# ---- rekey


def test_rekey_copies_once_in_the_order_of_time_and_says_what_it_could_not_key(settings: Settings) -> None:
    """One user's events lie in three partitions under foreign keys; the copy has them in one, in order."""
    source = f"{settings.topics.prefix}web"
    target = settings.clicks_topic
    create(settings.model_copy(update={"topics": settings.topics.model_copy(update={"clicks": "web"})}))
    start_ms = 1_700_000_000_000
    for number in range(30):
        value, key = click(f"u{number % 2}", number), f"session-{number}".encode()
        send(settings, source, value=value, key=key, partition=number % 3, timestamp=start_ms + number)
    send(settings, source, value=click("u1", 30), key=b"u1", partition=0, timestamp=start_ms + 30)
    send(settings, source, value=b"not json", partition=1, timestamp=start_ms + 31)
    send(settings, source, value=None, key=b"session-1", partition=2)
    found = command(settings, "rekey", "--from", source, "--to", target).json
    assert (found["keyed"], found["kept"], found["not_keyed"], found["tombstones_left_out"]) == (30, 1, 1, 1)
    assert found["examples_not_keyed"] == [f"{source}[1]@10"]
    copied = records(settings, target)
    for user in ("u0", "u1"):
        own = [
            json.loads(record.value or b"")["event_id"] for record in copied if record.key == user.encode()
        ]
        assert own == sorted(own, key=lambda event_id: int(event_id[1:]))
    assert len(copied) == 32
    assert [record.value for record in copied if record.key is None] == [b"not json"]
    assert command(settings, "rekey", "--from", source, "--to", target).json["read"] == 0
    send(settings, source, value=click("u0", 31), key=b"session-31")
    assert command(settings, "rekey", "--from", source, "--to", target).json["keyed"] == 1
    delete_topics(settings.kafka.librdkafka(), [source])


def test_rekey_into_itself_or_into_nothing_is_refused(settings: Settings) -> None:
    """The first would never end, the second names the missing topic."""
    source = settings.clicks_topic
    assert (
        "cannot be rekeyed into itself" in command(settings, "rekey", "--from", source, "--to", source).error
    )
    assert (
        "Topic nowhere does not exist"
        in command(settings, "rekey", "--from", source, "--to", "nowhere").error
    )


# ---- state


def store_of(settings: Settings, rows: dict[bytes, bytes], position: int) -> None:
    store = Store(settings.data_dir / "state" / "0")
    store.open()
    topic_id = describe(settings.kafka.librdkafka(), settings.changelog_topic).topic_id
    store.apply(list(rows.items()), position, topic_id, 0)
    store.close()


def test_verify_compares_the_rows_with_the_changelog(settings: Settings) -> None:
    """Equal rows are sound; one that differs is named, with exit code 1."""
    for key in (b"u1", b"u2"):
        send(settings, settings.changelog_topic, key=key, value=b"row", partition=0)
    store_of(settings, {b"u1": b"row", b"u2": b"row"}, 1)
    sound = command(settings, "state", "verify")
    assert (sound.code, sound.json["equal"], sound.json["sound"]) == (0, 2, True)
    store_of(settings, {b"u2": b"other"}, 1)
    broken = command(settings, "state", "verify")
    assert (broken.code, broken.json["different"], broken.json["sound"]) == (1, 1, False)


@pytest.mark.parametrize("to", ["earliest", "latest"])
def test_a_reset_forgets_rows_and_sets_the_positions(settings: Settings, to: str) -> None:
    """The changelog is a new topic with its settings; for ``latest`` it holds the mark of each partition."""
    client = settings.kafka.librdkafka()
    for number in range(10):
        send(settings, settings.clicks_topic, key=b"u", value=click("u", number), partition=number % 2)
    send(settings, settings.changelog_topic, key=b"u1", value=b"row", partition=0)
    store_of(settings, {b"u1": b"row"}, 0)
    before = describe(client, settings.changelog_topic)
    ran = command(settings, "state", "reset", "--to", to, "--yes")
    assert ran.code == 0, ran.err
    after = describe(client, settings.changelog_topic)
    assert after.topic_id != before.topic_id
    assert (after.partitions, after.cleanup_policy) == (PARTITIONS, "compact")
    assert not (settings.data_dir / "state" / "0").exists()
    marks = {record.partition: record for record in records(settings, settings.changelog_topic)}
    if to == "earliest":
        assert ran.json["positions"] == {"0": None, "1": None, "2": None}
        assert marks == {}
        return
    assert ran.json["positions"] == {"0": 5, "1": 5, "2": 0}
    source_id = describe(client, settings.clicks_topic).topic_id
    for partition, end in enumerate((5, 5, 0)):
        assert marks[partition].key == SOURCE_KEY
        assert SourceMark.decode(marks[partition].value or b"") == SourceMark(end, source_id, 0)


# ---- doctor


def test_the_doctor_finds_foreign_keys_in_the_input(settings: Settings) -> None:
    """It looks at the newest records of every partition, and says which command mends it."""
    for number in range(6):
        send(settings, settings.clicks_topic, key=b"session", value=click("u", number), partition=number % 3)
    ran = command(settings, "doctor")
    messages = [finding["message"] for finding in ran.json["findings"]]
    assert any("Of 6 records" in message and "key_mismatch 6" in message for message in messages)
    assert any("foreclick rekey --from" in message for message in messages)
    assert ran.code == 1
