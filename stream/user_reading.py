"""Everything about one user, from the topics or from files: what ``explain`` draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stream.alerts import Alert
from stream.broker.topics import describe_topics
from stream.errors import InputFileError, TopicError
from stream.events import Event, decode_events
from stream.files import read_log
from stream.formats import adapt_object, record_adapter
from stream.json_lines import lines_of
from stream.partitioner import partition_of
from stream.settings import Settings
from stream.stored_alerts import Unreadable, alert_topics, alerts_in, stored_alerts
from stream.timeline import Place, Prediction, Timeline, prediction_of, timeline
from stream.topic_reader import Bounds, CommittedRecord, bounds, offsets_since, read, reader
from stream.topics import existing
from stream.wording import cut, moment, plain

__all__ = ["user_in_files", "user_in_topics"]

Advance = Callable[[int], None]


class _UserOnly(msgspec.Struct):
    user_id: str


_decode_user = msgspec.json.Decoder(_UserOnly).decode


def user_in_topics(
    settings: Settings, user: str, *, last: int, since_ms: int | None, advance: Advance
) -> Timeline:
    """A user's timeline from ``predictions``, the input topic and the alerts' topics.

    Read is the partition in which the user's key belongs; only when there is nothing of the user in it, the others.
    Of the input topic only the stretch of the steps that are shown is read.

    Args:
        last: show at most so many events, the newest.
        since_ms: leave out what the broker stamped earlier.
        advance: told how many records were read so far.

    Raises:
        TopicError: a topic is missing, or there is nothing of the user; the message says what was read.
        BrokerUnreachable: nobody answers.
    """
    client, key = settings.kafka.librdkafka(), user.encode()
    topic = existing(settings, settings.predictions_topic)
    made: list[Prediction] = []
    seen = 0
    with reader(client) as consumer:
        stretches = (
            bounds(consumer, topic.name, topic.partitions)
            if since_ms is None
            else offsets_since(consumer, topic.name, topic.partitions, since_ms)
        )
        home = partition_of(key, topic.partitions)
        for numbers in ([home], [number for number in stretches if number != home]):
            for record in read(consumer, topic.name, {number: stretches[number] for number in numbers}):
                seen += 1
                advance(seen)
                if record.key == key and record.value and (found := prediction_of(record.value)):
                    made.append(found)
            if made:
                break
    since = "" if since_ms is None else f" since {moment(since_ms)} UTC"
    told = f"{seen:,} predictions of {topic.name}{since}"
    if not made:
        raise TopicError(
            f"No prediction for user {cut(user, 80)!r} among {told}, all {topic.partitions} partitions. Check the id "
            "(foreclick state show USER knows every user), or read from further back with --since."
        )
    notes: list[str] = []
    events = _events_of(settings, made[max(0, len(made) - last) :], notes, lambda done: advance(seen + done))
    alerts = _alerts_of(settings, notes)
    return timeline(user, made, events, alerts, last=last, read=told, notes=notes)


def user_in_files(
    scored: str | Path,
    user: str,
    *,
    last: int,
    events: str | Path | None,
    log_options: dict[str, Any],
    alerts: Sequence[str | Path],
    advance: Advance,
) -> Timeline:
    """A user's timeline from a file that ``score --out`` wrote.

    Args:
        scored: predictions, a line each.
        last: show at most so many events, the newest.
        events: the log that was scored, for actions and items; None leaves them unknown.
        log_options: of that log, as ``stream.files.read_log`` takes them; they must be those of ``score``.
        alerts: files of alerts.
        advance: told how many lines were read so far.

    Raises:
        InputFileError: a file cannot be read, is not of its kind, or holds nothing of the user.
    """
    made, lines, name = [], 0, "standard input" if str(scored) == "-" else str(scored)
    for number, line in lines_of(scored):
        lines += 1
        advance(lines)
        try:
            whose = _decode_user(line).user_id
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise InputFileError(
                f"{name}:{number} is no prediction: {plain(str(error))}. Name a file that "
                "`foreclick score --out` wrote."
            ) from None
        if whose == user:
            found = prediction_of(line)
            if found is None:
                raise InputFileError(
                    f"{name}:{number} is no prediction of this build. Name a file that `foreclick score --out` wrote."
                )
            made.append(found)
    if not made:
        raise InputFileError(
            f"No prediction for user {cut(user, 80)!r} among the {lines:,} lines of {name}. Check the id."
        )
    known: dict[Place, Event] = {}
    if events is not None:
        records = read_log(events, **log_options).records
        wanted = [each for each in made if each.source.offset < len(records)]
        lines_of_user = [records[each.source.offset] for each in wanted]
        decoded = decode_events(
            [r.key for r in lines_of_user], [r.value for r in lines_of_user], adapt_object
        )
        for each, event in zip(wanted, decoded, strict=True):
            # Another file, or the same in another order, has somebody else there.
            if not isinstance(event, Event) or (event.user_id, event.event_time_ms) != (
                user,
                each.event_time_ms,
            ):
                raise InputFileError(
                    f"Record {each.source.offset} of {events} is not the event that {name} scored. Name the file that "
                    "was scored, with the --format, --columns and --order that score had."
                )
            known[each.place] = event
    unreadable, about = Unreadable(), []
    for file in alerts:
        about += [stored.alert for stored in alerts_in(file, unreadable)]
    notes = [unreadable.told()] if unreadable.count else []
    return timeline(user, made, known, about, last=last, read=f"{lines:,} lines of {name}", notes=notes)


def _events_of(
    settings: Settings, made: Sequence[Prediction], notes: list[str], advance: Advance
) -> dict[Place, Event]:
    """The source records that predictions name, as far as they are still there."""
    client, adapt = settings.kafka.librdkafka(), record_adapter(settings.input_format)
    name = settings.clicks_topic
    if name not in describe_topics(client, [name]):
        notes.append(f"Topic {name} does not exist any more: what the user did is not known.")
        return {}
    topic = existing(settings, name)
    wanted: dict[int, set[int]] = {}
    for each in made:
        if each.source.topic == name and each.source.partition < topic.partitions:
            wanted.setdefault(each.source.partition, set()).add(each.source.offset)
    found: list[CommittedRecord] = []
    with reader(client) as consumer:
        whole = bounds(consumer, name, topic.partitions)
        stretches = {
            number: Bounds(max(min(offsets), whole[number].start), min(max(offsets) + 1, whole[number].end))
            for number, offsets in wanted.items()
        }
        for done, record in enumerate(read(consumer, name, stretches), 1):
            advance(done)
            if record.offset in wanted[record.partition]:
                found.append(record)
    decoded = decode_events([record.key for record in found], [record.value for record in found], adapt)
    events = {
        (name, record.partition, record.offset): event
        for record, event in zip(found, decoded, strict=True)
        if isinstance(event, Event)
    }
    if lacking := len(made) - len(events):
        notes.append(f"{lacking} events are no longer in {name}: what the user did there is not known.")
    return events


def _alerts_of(settings: Settings, notes: list[str]) -> list[Alert]:
    names = alert_topics(settings)
    there = describe_topics(settings.kafka.librdkafka(), names)
    if missing := [name for name in names if name not in there]:
        notes.append(f"No alerts: {' and '.join(missing)} do not exist. Create them: foreclick topics create")
        return []
    unreadable = Unreadable()
    found = [stored.alert for stored in stored_alerts(settings, unreadable)]
    if unreadable.count:
        notes.append(unreadable.told())
    return found
