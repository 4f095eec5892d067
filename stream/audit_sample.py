"""The audit sample as it waits for people: what was drawn, is not flagged and has no label yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from stream.label_join import UserLabels
from stream.settings import Settings
from stream.stage import RESERVED
from stream.topic_reader import read_all
from stream.topics import existing

__all__ = ["Waiting", "unlabelled"]


class Waiting(NamedTuple):
    """A subject of the audit that somebody should look at."""

    user_id: str
    subject_type: str
    subject: str


def unlabelled(settings: Settings, advance: Callable[[int], None] = lambda _: None) -> list[Waiting]:
    """By user, in the order in which they were drawn; from the rows of the stage, as they are committed.

    Raises:
        TopicError: the changelog is missing: no worker has run the stage of labels.
        DamagedRow: another build wrote a row.
        BrokerUnreachable: nobody answers.
    """
    changelog = existing(settings, settings.labels_changelog_topic)
    waiting: dict[bytes, list[Waiting]] = {}
    records = read_all(settings.kafka.librdkafka(), changelog.name, changelog.partitions)
    for seen, record in enumerate(records, 1):
        advance(seen)
        if record.key is None or record.key.startswith(RESERVED):
            continue
        user = record.key.decode()
        # A record without a value erases the user: an empty row waits for nothing.
        waiting[record.key] = [
            Waiting(user, *key.split("/", 1))
            for key, subject in UserLabels.of_row(record.value).subjects.items()
            if subject.audit_rate and subject.label is None and not subject.scores
        ]
    return [each for found in waiting.values() for each in found]
