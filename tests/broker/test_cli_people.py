"""What analysts touch, on a real broker: alerts as they are committed, and a user's timeline."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from stream.broker import Broker
from stream.broker.topics import delete_topics
from stream.partitioner import partition_of
from stream.settings import Settings, load_settings
from stream.topics import create, topic_specs
from tests.command_line import Ran, foreclick
from tests.stream.test_alerts_shown import alert
from tests.stream.test_explain import event, scored

pytestmark = pytest.mark.broker

PARTITIONS = 3


@pytest.fixture(scope="module")
def settings(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Topics of this module alone."""
    name = f"p{uuid.uuid4().hex[:8]}"
    made = load_settings(
        {},
        kafka__bootstrap_servers=broker.bootstrap_servers,
        topics__prefix=f"{name}.",
        topics__partitions=PARTITIONS,
        app_id=name,
        data_dir=tmp_path_factory.mktemp("data"),
    )
    create(made)
    yield made
    delete_topics(made.kafka.librdkafka(), [spec.name for spec in topic_specs(made)])


def command(settings: Settings, *arguments: object) -> Ran:
    return foreclick(
        *arguments,
        KAFKA__BOOTSTRAP_SERVERS=settings.kafka.bootstrap_servers,
        TOPICS__PREFIX=settings.topics.prefix,
        TOPICS__PARTITIONS=PARTITIONS,
        APP_ID=settings.app_id,
        DATA_DIR=settings.data_dir,
    )


def send(
    settings: Settings, topic: str, *objects: dict[str, Any], key: str, commit: bool = True, **to: Any
) -> None:
    """One transaction."""
    producer = Producer(
        {
            **settings.kafka.librdkafka(),
            "transactional.id": f"t{uuid.uuid4().hex}",
            "partitioner": "murmur2_random",
            "log_level": 0,
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for each in objects:
        producer.produce(topic, json.dumps(each).encode(), key.encode(), **to)
    producer.flush(30)
    if commit:
        producer.commit_transaction(30)
    else:
        producer.abort_transaction(30)


def test_tail_follows_what_is_committed_in_both_topics(settings: Settings) -> None:
    """What is there comes first; then what is committed, and never what was aborted."""
    churn = alert(2, kind="churn.expected", subject_type="user", subject="u5", id="churn/u5", members=[])
    send(settings, settings.alerts_fraud_topic, alert(1), key="s1")

    def later() -> None:
        time.sleep(1)
        send(settings, settings.alerts_fraud_topic, alert(9), key="s1", commit=False)
        send(settings, settings.alerts_churn_topic, churn, key="u5")
        send(settings, settings.alerts_fraud_topic, alert(3), key="s1")

    writer = threading.Thread(target=later)
    writer.start()
    ran = command(settings, "alerts", "tail", "--limit", "3", "--json")
    writer.join()
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert lines[0] == alert(1)
    assert sorted(each["id"] for each in lines[1:3]) == sorted([churn["id"], alert(3)["id"]])
    assert lines[3] == {"alerts": 3, "by_kind": {"order_brushing": 2, "churn.expected": 1}, "unreadable": 0}
    # The newest of those there, then the end.
    ended = command(
        settings, "alerts", "tail", "--no-follow", "--limit", "1", "--kind", "order_brushing", "--json"
    )
    assert [json.loads(line)["id"] for line in ended.out.splitlines()[:-1]] == [alert(3)["id"]]
    assert (
        command(settings, "alerts", "tail", "--no-follow", "--since", "2100-01-01", "--json").json["alerts"]
        == 0
    )
    assert command(settings, "alerts", "tail", "--no-follow", "--since", "1h", "--json").json["alerts"] == 3
    shown = command(settings, "alerts", "show", churn["id"], "--json").json
    assert shown["place"].startswith(settings.alerts_churn_topic + "[")


@pytest.mark.parametrize("at_home", [True, False])
def test_explain_finds_a_user_with_actions_and_alerts(
    settings: Settings, at_home: bool, tmp_path: Path
) -> None:
    """Where the key belongs, and also where another partitioner put it; the page is written beside it."""
    user = f"u{at_home}"
    home = partition_of(user.encode(), PARTITIONS)
    partition = home if at_home else (home + 1) % PARTITIONS
    to = {"key": user, "partition": partition}
    send(settings, settings.clicks_topic, event(user, 0, "view"), event(user, 2, "cart"), **to)
    client = settings.kafka.librdkafka()
    first = next(
        record.offset
        for record in _all(client, settings.clicks_topic)
        if record.partition == partition and record.key == user.encode()
    )
    made = [scored(user, number, offset=first + place) for place, number in enumerate((0, 2))]
    for each in made:
        each["source"] |= {"topic": settings.clicks_topic, "partition": partition}
    send(settings, settings.predictions_topic, *made, **to)
    send(settings, settings.predictions_topic, scored("else", 1), key="else", partition=partition)
    about = alert(5, id=f"a/{user}", subject=f"s{user}", members=[user])
    send(settings, settings.alerts_fraud_topic, about, key="s")
    found = command(settings, "explain", user, "--html", tmp_path / "page.html", "--json").json
    assert [(step["action"], step["item_id"]) for step in found["steps"]] == [("view", "i3"), ("cart", "i3")]
    assert [each["id"] for each in found["alerts"]] == [about["id"]]
    assert found["steps"][1]["expected_probability"] == 0.03
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_a_user_whom_nobody_scored_is_an_error(settings: Settings) -> None:
    """It names the topic and that all of it was read."""
    error = command(settings, "explain", "nobody").error
    assert "No prediction for user 'nobody'" in error
    assert f"all {PARTITIONS} partitions" in error


def _all(client: dict[str, Any], topic: str) -> Any:
    from stream.topic_reader import read_all

    return read_all(client, topic, PARTITIONS)
