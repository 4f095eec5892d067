"""Labels into their topic, for commands: checked by the pipeline's own decoder, then one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import KafkaException

from stream.errors import BrokerUnreachable, InputFileError
from stream.events import Rejection
from stream.json_lines import lines_of
from stream.label_records import Label, label_of
from stream.replay import producer_of
from stream.settings import Settings
from stream.topics import existing
from stream.wording import plain

__all__ = ["LabelLine", "labels_in", "write_labels"]

_TIMEOUT_S = 60.0
_EXAMPLE = (
    '{"subject": "order", "id": "o17", "user_id": "u17", "label": "fraud", '
    '"time_ms": 1511550516000, "by": "mary"}'
)


class LabelLine(NamedTuple):
    """A label as a record: the user in UTF-8, and its JSON."""

    key: bytes
    value: bytes

    @classmethod
    def checked(cls, place: str, value: bytes) -> LabelLine:
        """A line as a record.

        Args:
            place: of the line, for the error.
            value: its bytes.

        Raises:
            InputFileError: the pipeline would reject it; the message says why.
        """
        found = label_of(value)
        if isinstance(found, Label):
            return cls(found.user_id.encode(), value)
        why = f"{found.reason}: {found.message}" if isinstance(found, Rejection) else "a note of a stage"
        raise InputFileError(
            f"{plain(place)} is no label ({plain(why)}). Nothing was written. A label is an object like {_EXAMPLE}"
        )


def labels_in(path: str | Path) -> list[LabelLine]:
    """The labels of a file.

    Raises:
        InputFileError: it cannot be read, is empty, or a line is no label; the message names file and line.
    """
    name = "standard input" if str(path) == "-" else str(path)
    found = [LabelLine.checked(f"{name}:{number}", line) for number, line in lines_of(path)]
    if not found:
        raise InputFileError(f"{plain(name)} holds no labels. Write an object a line.")
    return found


def write_labels(
    settings: Settings, lines: Iterable[LabelLine], advance: Callable[[int], None] = lambda _: None
) -> None:
    """Write labels in one transaction: readers see all of them or none.

    Raises:
        TopicError: the topic is missing.
        BrokerUnreachable: the broker did not take them; none is there.
    """
    topic, client = existing(settings, settings.labels_topic), settings.kafka.librdkafka()
    producer = producer_of(
        client, **{"transactional.id": f"{settings.app_id}-labels-import-{uuid.uuid4().hex}"}
    )
    try:
        producer.init_transactions(_TIMEOUT_S)
        producer.begin_transaction()
        for sent, line in enumerate(lines, 1):
            while True:
                try:
                    producer.produce(topic.name, line.value, line.key)
                    break
                except BufferError:
                    producer.poll(0.1)
            advance(sent)
        producer.commit_transaction(_TIMEOUT_S)
    except KafkaException as error:
        raise BrokerUnreachable(
            f"The broker did not take the labels: {error.args[0].str()}. None of them is in {topic.name}; look at "
            "`foreclick broker status`, then try again."
        ) from error
