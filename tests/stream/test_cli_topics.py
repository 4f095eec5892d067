"""What ``topics check`` says of a broker's topics, without a broker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stream.broker.topics import TopicInfo
from stream.settings import Settings, load_settings
from stream.topics import DEAD_LETTER_EXTRA_BYTES, differences, fresh_start, printable, topic_specs

DEFAULTS = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "min.insync.replicas": "2",
}


@pytest.fixture
def settings() -> Settings:
    return load_settings({}, topics__partitions=4, topics__replication_factor=3)


@pytest.fixture
def found(settings: Settings) -> dict[str, TopicInfo]:
    """The topics as ``topics create`` makes them on three brokers."""
    return {
        spec.name: TopicInfo(spec.name, bytes(16), spec.partitions, 3, {**DEFAULTS, **spec.config})
        for spec in topic_specs(settings)
    }


def messages(settings: Settings, found: dict[str, TopicInfo], level: str) -> list[str]:
    return [message for each, message in differences(settings, found) if each == level]


def changed(topic: TopicInfo, **config: str) -> TopicInfo:
    return replace(
        topic, config={**topic.config, **{key.replace("_", "."): value for key, value in config.items()}}
    )


def test_topics_as_created_are_well(settings: Settings, found: dict[str, TopicInfo]) -> None:
    """The check and the creation share one specification."""
    assert printable(differences(settings, found))["level"] == "ok"


def test_the_changelog_has_the_partitions_of_an_existing_source(settings: Settings) -> None:
    """A row's partition is its source partition, whatever the setting says."""
    by_name = {spec.name: spec for spec in topic_specs(settings, source_partitions=12)}
    assert by_name[settings.changelog_topic].partitions == 12
    assert by_name[settings.changelog_topic].config["cleanup.policy"] == "compact"


def test_the_dead_letters_take_64_kib_more_than_the_source(
    settings: Settings, found: dict[str, TopicInfo]
) -> None:
    """A dead letter carries the original bytes and the reason."""
    dead_letters, source = found[settings.dead_letters_topic], found[settings.clicks_topic]
    assert dead_letters.max_message_bytes == source.max_message_bytes + DEAD_LETTER_EXTRA_BYTES
    found[settings.clicks_topic] = changed(source, max_message_bytes="5000000")
    (message,) = messages(settings, found, "fail")
    assert f"max.message.bytes={5_000_000 + DEAD_LETTER_EXTRA_BYTES}" in message


def test_a_missing_topic_names_the_command_that_creates_it(
    settings: Settings, found: dict[str, TopicInfo]
) -> None:
    """Only that topic is reported."""
    del found[settings.predictions_topic]
    (message,) = messages(settings, found, "fail")
    assert message == "Topic predictions does not exist. Create it: foreclick topics create"


def test_other_partitions_of_the_changelog_fail(settings: Settings, found: dict[str, TopicInfo]) -> None:
    """Rows would be looked for where they are not."""
    name = settings.changelog_topic
    found[name] = replace(found[name], partitions=8)
    (message,) = messages(settings, found, "fail")
    assert "clicks has 4 partitions" in message
    assert "has 8" in message
    assert "foreclick state reset" in message


@pytest.mark.parametrize("stage", ["groups", "labels"])
def test_the_way_out_of_one_stage_leaves_the_rows_of_others(stage: str) -> None:
    """`state reset` forgets every user's rows, and makes no changelog of labels anew."""
    settings = load_settings({})
    said = fresh_start(settings, getattr(settings, f"{stage}_changelog_topic"))
    assert f"delete on the broker foreclick-{stage}" in said
    assert f"the group foreclick-{stage} (" in said
    assert "`foreclick topics create`" in said
    assert "delete on the broker labels" not in said
    assert fresh_start(settings, settings.changelog_topic).startswith("Run `foreclick state reset")


def test_a_changelog_that_deletes_fails_and_a_source_that_compacts_too(
    settings: Settings, found: dict[str, TopicInfo]
) -> None:
    """Each message has the value that mends it."""
    found[settings.changelog_topic] = changed(found[settings.changelog_topic], cleanup_policy="delete")
    found[settings.clicks_topic] = changed(found[settings.clicks_topic], cleanup_policy="compact")
    source, changelog = messages(settings, found, "fail")
    assert "--entity-name clicks --add-config cleanup.policy=delete" in source
    assert "--add-config cleanup.policy=compact" in changelog


def test_few_copies_are_one_warning(settings: Settings, found: dict[str, TopicInfo]) -> None:
    """A laptop has one broker: that is no failure, and is said once for all topics."""
    (message,) = messages(
        settings, {name: replace(topic, replication_factor=1) for name, topic in found.items()}, "warn"
    )
    assert "clicks 1, predictions 1" in message


def test_three_copies_of_which_one_may_count_are_a_warning(
    settings: Settings, found: dict[str, TopicInfo]
) -> None:
    """A record must be on two brokers before it counts as written."""
    found["clicks"] = changed(found["clicks"], min_insync_replicas="1")
    (message,) = messages(settings, found, "warn")
    assert "--add-config min.insync.replicas=2" in message
