"""What workers of the product should have made of a round's input: everything they wrote is compared.

What it must write is what the same core writes offline for the same records (stream/offline.py), byte for byte and in
the same order in every output topic, whatever happened in between; and the rows in the changelog are those of the
offline fold. What the second stage is told is held against it as well, but for the watermarks, which depend on how the
records were cut into micro-batches. Its alerts and rows are held against its own fold over what it was told
(tests/chaos/second_stage.py). In a round in which the model was exchanged nobody can say which event met which model:
there ids, order and everything that no model has a say in are compared; the second stage as ever, since it is held
against what it was told. The offline core is the product's own code, so what it folds wrongly this does not see;
tests/chaos/oracle.py, which knows nothing of the product, is for that.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from models.registry import Artefact
from models.runtime import StepEngine
from stream.audit import read_topic
from stream.broker.topics import describe
from stream.group_detectors import GroupEvent, Meeting
from stream.group_records import ERASURE_KEY, Erasure, read_record, routed
from stream.groups_app import detectors_of, group_records, told_kinds
from stream.groups_stage import DecodedGroups
from stream.label_notes import group_notes
from stream.local_rows import GROUPS_TABLE, LABELS_TABLE, TABLE
from stream.offline import OfflineRecord, score_batches
from stream.scoring import readable_id
from stream.settings import Settings
from tests.chaos.label_stage import alert_notes, joined, notes_told, order_notes
from tests.chaos.local_stores import judge_store
from tests.chaos.second_stage import SecondStage, transactions
from tests.chaos.verdict import EXAMPLES, Verdict

# Of a prediction: what follows from the records alone.
MODEL_FREE = ("schema", "user_id", "event_id", "event_time_ms", "source", "session")
RESERVED = b"\0"


class Told(NamedTuple):
    """A record of a group, as ``DecodedGroups`` has it."""

    group: bytes
    event: GroupEvent


def _group(message: Any) -> bytes:
    return message[0]  # type: ignore[no-any-return]


def _record(message: Any) -> OfflineRecord:
    return OfflineRecord(message.offset(), message.key(), message.value(), message.headers() or ())


def _told_by_groups(message: Any) -> bool:
    """Whether the second stage told itself: of a meeting, or of a user whom a partition has erased."""
    key, value, _ = message
    event = read_record(key, value)
    return isinstance(event, Meeting) or (isinstance(event, Erasure) and event.again)


def _said(message: Any) -> tuple[Any, Any, list[Any]]:
    return message.key(), message.value(), [tuple(pair) for pair in message.headers() or ()]


def _rejected_from(message: Any) -> str:
    """The topic that a dead letter came from."""
    return bytes(dict(message[2])["__streams.errors.topic"]).decode()


class ProductOracle:
    """Compares everything that a round of the product wrote.

    Args:
        artefact: the model that the round began with.
        models: labels of those that may have scored.
        swapped: whether another one was asked for.
    """

    def __init__(self, settings: Settings, artefact: Artefact, models: Sequence[str], swapped: bool):
        self._settings, self._artefact = settings, artefact
        self._models, self._swapped = models, swapped
        self._partitions = settings.topics.partitions

    def judge(self, data_dirs: Sequence[Path] = ()) -> Verdict:
        """Hold every output topic, the changelogs and the local stores against the offline core.

        The workers must have stopped when local stores are named.
        """
        verdict = Verdict()
        client = self._settings.kafka.librdkafka()
        source: dict[int, list[OfflineRecord]] = {number: [] for number in range(self._partitions)}
        for message in read_topic(client, self._settings.clicks_topic):
            source[message.partition()].append(_record(message))
            verdict.events += 1
        groups = describe(client, self._settings.groups_topic).partitions
        expected: dict[str, dict[int, list[Any]]] = {}
        rows: dict[bytes, bytes] = {}
        for partition, records in source.items():
            records.sort(key=lambda record: record.offset)
            for rendered in self._offline(records, partition, groups):
                for topic, messages in rendered.messages.items():
                    expected.setdefault(topic, {}).setdefault(partition, []).extend(messages)
                for key, row in rendered.rows:
                    if row is not None:
                        rows[key] = row
                    else:
                        rows.pop(key, None)
        settings = self._settings
        changelog = self._by_partition(settings.changelog_topic)
        self._compare_rows(rows, changelog, verdict)
        self._judge_stores(data_dirs, TABLE, changelog, verdict)
        told = self._by_partition(settings.groups_topic)
        self._compare_told(expected, told, groups, verdict)
        self._compare_vectors(expected.pop(settings.user_vectors_topic, {}), verdict)
        changelog = self._by_partition(settings.groups_changelog_topic)
        self._judge_stores(data_dirs, GROUPS_TABLE, changelog, verdict)
        alerts = self._judge_second_stage(told, changelog, groups, verdict)
        letters, audits = self._judge_labels(told, data_dirs, verdict)
        churn = expected.pop(settings.alerts_churn_topic, {})
        if self._swapped:  # which model judged a silence is not known: only that nothing is said twice
            churn = self._once(settings.alerts_churn_topic, verdict)
        outputs: dict[str, dict[int, list[Any]]] = {
            settings.predictions_topic: {},
            settings.dead_letters_topic: {},
            **expected,
            settings.alerts_churn_topic: churn,
            settings.alerts_fraud_topic: alerts,
            settings.alerts_audit_topic: audits,
        }
        for topic, wanted in outputs.items():
            written = self._by_partition(topic)
            for partition in range(self._partitions):
                found = [_said(message) for message in written[partition]]
                if topic == settings.dead_letters_topic:
                    of_labels = [m for m in found if _rejected_from(m) == settings.labels_topic]
                    found = [m for m in found if _rejected_from(m) != settings.labels_topic]
                    self._compare(topic, partition, letters[partition], of_labels, verdict)
                self._compare(topic, partition, wanted.get(partition, []), found, verdict)
        return verdict

    def _compare_told(
        self,
        expected: dict[str, dict[int, list[Any]]],
        told: dict[int, list[Any]],
        groups: int,
        verdict: Verdict,
    ) -> None:
        """What each partition of the source told each partition of groups, in the order of each group.

        Left out are watermarks; and of tombstones, which are told once a micro-batch, only whom they name is compared.
        """
        for number in range(groups):
            topic = routed(self._settings.groups_topic, number)
            by_source = expected.pop(topic, {})
            found: dict[int, list[Any]] = defaultdict(list)
            for message in told[number]:
                event = read_record(message.key(), message.value() or b"")
                if isinstance(event, GroupEvent) and not isinstance(event, Meeting):
                    found[event.partition].append((message.key(), message.value(), []))
            for partition in range(self._partitions):
                wanted = [m for m in by_source.get(partition, []) if m[0] and not m[0].startswith(RESERVED)]
                # News of users stand behind the orders of their micro-batch: the order of a group's own records counts.
                both = (
                    sorted(map(self._news, messages), key=_group) for messages in (wanted, found[partition])
                )
                before, after = ([m for m in messages if m[1]] for messages in both)
                self._compare(topic, partition, before, after, verdict)
            erased = {m[1] for messages in by_source.values() for m in messages if m[0] == ERASURE_KEY}
            named = {m.value() for m in told[number] if m.key() == ERASURE_KEY}
            self._compare(
                topic,
                0,
                *([(ERASURE_KEY, user, []) for user in sorted(each)] for each in (erased, named)),
                verdict,
            )

    def _news(self, message: Any) -> Any:
        """A record of a group; of one about a user, if models had a say in it, only that an order was told of."""
        key, value, _ = message
        if not self._swapped or not key.startswith(b"user:"):
            return message
        event = read_record(key, value)
        ordered = isinstance(event, GroupEvent) and event.action == "purchase"
        return key, b"%d" % event.offset if ordered else b"", []

    def _compare_vectors(self, expected: dict[int, list[Any]], verdict: Verdict) -> None:
        """What compaction leaves of users' vectors; those in between depend on how micro-batches were cut."""
        topic = self._settings.user_vectors_topic
        newest: dict[int, dict[bytes, Any]] = {number: {} for number in range(self._partitions)}
        for message in read_topic(self._settings.kafka.librdkafka(), topic):
            newest[message.partition()][message.key()] = message.value()
        for partition, last in newest.items():
            wanted = {key: value for key, value, _ in expected.get(partition, [])}
            both = [sorted(wanted.items()), sorted(last.items())]
            if self._swapped:  # which model made a vector is not known: only whose are there
                both = [[(key, value is None) for key, value in pairs] for pairs in both]
            before, after = ([(*pair, []) for pair in pairs] for pairs in both)
            self._compare(topic, partition, before, after, verdict)

    def _once(self, topic: str, verdict: Verdict) -> dict[int, list[Any]]:
        """The records of a topic, of which none may have the identity of another."""
        written = {number: list(map(_said, each)) for number, each in self._by_partition(topic).items()}
        named = Counter(dict(m[2])["ce_id"] for messages in written.values() for m in messages)
        verdict.repeats += named.total() - len(named)
        return written

    def _judge_second_stage(
        self, told: dict[int, list[Any]], changelog: dict[int, list[Any]], groups: int, verdict: Verdict
    ) -> dict[int, list[Any]]:
        """Rows of every partition of groups against its own fold of what it was told; the alerts of that."""
        client, settings = self._settings.kafka.librdkafka(), self._settings
        clicks = describe(client, settings.clicks_topic)
        stage = SecondStage(
            detectors=detectors_of(settings, settings.clicks_topic),
            partitions=groups,
            sources=clicks.partitions,
            topic_id=readable_id(clicks.topic_id),
            source=f"/{settings.app_id}/{settings.clicks_topic}",
            late_limit_ms=settings.late_limit_s * 1000,
            cool_down_ms=settings.groups.cool_down_s * 1000,
        )
        alerts: dict[int, list[Any]] = defaultdict(list)
        by_itself: dict[int, list[Any]] = defaultdict(list)
        for number in range(groups):
            replayed = stage.replay(list(map(_record, told[number])), transactions(changelog[number]))
            verdict.mismatching_groups += replayed.different
            verdict.quiet_transactions += replayed.quiet
            if replayed.unread:
                verdict.mismatching_positions += 1
                verdict.note(f"{settings.groups_topic}[{number}]: {replayed.unread} records were not read")
            for example in replayed.examples[:EXAMPLES]:
                verdict.note(example)
            alerts[number % self._partitions] += replayed.alerts
            for partition, messages in replayed.told.items():
                by_itself[partition] += messages
        for partition in range(groups):
            read = [(message.key(), message.value(), []) for message in told[partition]]
            found = sorted(message for message in read if _told_by_groups(message))
            self._compare(settings.groups_topic, partition, sorted(by_itself[partition]), found, verdict)
        return alerts

    def _judge_labels(
        self, told: dict[int, list[Any]], data_dirs: Sequence[Path], verdict: Verdict
    ) -> tuple[dict[int, list[Any]], dict[int, list[Any]]]:
        """Notes and rows of labels, and what became of each label; the dead letters and audits of that."""
        client, settings = self._settings.kafka.librdkafka(), self._settings
        topic = describe(client, settings.labels_topic)
        records = self._by_partition(topic.name)
        changelog = self._by_partition(settings.labels_changelog_topic)
        self._judge_stores(data_dirs, LABELS_TABLE, changelog, verdict)
        letters: dict[int, list[Any]] = defaultdict(list)
        audits: dict[int, list[Any]] = defaultdict(list)
        outcomes: Counter[str] = Counter()
        for number in range(topic.partitions):
            found = joined(
                list(map(_record, records[number])),
                transactions(changelog[number]),
                number,
                topic=topic.name,
                topic_id=readable_id(topic.topic_id),
                source=f"/{settings.app_id}/{topic.name}",
                audit_rate=settings.labels.audit_rate,
            )
            verdict.mismatching_rows += len(found.different)
            verdict.mismatching_positions += bool(found.unread)
            for example in found.different[:EXAMPLES]:
                verdict.note(example)
            letters[number % self._partitions] += found.letters
            audits[number % topic.partitions] += found.audits
            outcomes += Counter(found.outcomes) + Counter(rejected=len(found.letters))
        verdict.labels = dict(outcomes)
        self._compare_notes(told, chain.from_iterable(records.values()), verdict)
        return letters, audits

    def _compare_notes(self, told: dict[int, list[Any]], labels: Iterable[Any], verdict: Verdict) -> None:
        """Each order and each alert is told to the stage of labels once."""
        settings = self._settings
        notes_of = group_notes(told_kinds(settings))
        wanted: Counter[tuple[bytes, bytes]] = Counter()
        for messages in told.values():
            events = [
                Told(message.key(), read)
                for message in messages
                if isinstance(read := read_record(message.key(), message.value()), GroupEvent)
            ]
            wanted.update(order_notes(notes_of(DecodedGroups(events, [], 0), ()).orders))  # type: ignore[arg-type]
        kinds: Counter[str] = Counter()
        for topic in (settings.alerts_fraud_topic, settings.alerts_churn_topic):
            alerts = [message.value() for part in self._by_partition(topic).values() for message in part]
            kinds.update(json.loads(alert)["kind"] for alert in alerts)
            wanted.update(alert_notes(alerts))
        verdict.alert_kinds, verdict.alerts = dict(kinds), kinds.total()
        found = notes_told(map(_record, labels))
        both = (sorted((*note, []) for note in notes.elements()) for notes in (wanted, found))
        self._compare(settings.labels_topic, 0, *both, verdict)

    def _by_partition(self, topic: str) -> dict[int, list[Any]]:
        """The committed records of a topic, by offset."""
        found: dict[int, list[Any]] = defaultdict(list)
        for message in read_topic(self._settings.kafka.librdkafka(), topic):
            found[message.partition()].append(message)
        for messages in found.values():
            messages.sort(key=lambda message: message.offset())
        return found

    def _offline(self, records: list[OfflineRecord], partition: int, groups: int) -> Iterator[Any]:
        artefact = self._artefact
        engine = StepEngine(artefact, "cpu")
        client, source = self._settings.kafka.librdkafka(), self._settings.clicks_topic
        return score_batches(
            records,
            self._settings,
            artefact,
            engine,
            source,
            topic_id=describe(client, source).topic_id,
            partition=partition,
            groups=group_records(self._settings, groups),
        )

    def _compare(
        self, topic: str, partition: int, wanted: list[Any], written: list[Any], verdict: Verdict
    ) -> None:
        dead = topic == self._settings.dead_letters_topic
        verdict.predictions += len(written) * (topic == self._settings.predictions_topic)
        verdict.dead_letters += len(written) * dead
        before, after = [self._identity(m) for m in wanted], [self._identity(m) for m in written]
        missing, more = Counter(before) - Counter(after), Counter(after) - Counter(before)
        verdict.lost += missing.total()
        verdict.repeats += sum(count for identity, count in more.items() if identity in set(before))
        verdict.contradicting += sum(count for identity, count in more.items() if identity not in set(before))
        for kind, found in (("is missing", missing), ("is there too often", more)):
            for identity in list(found)[:EXAMPLES]:
                verdict.note(f"{topic}[{partition}]: {identity} {kind}")
        if not missing and not more and before != after:
            verdict.out_of_order += 1
            verdict.note(f"{topic}[{partition}] is in another order")

    def _identity(self, message: Any) -> Any:
        """What has to agree: everything; after an exchange of models what they have no say in."""
        key, value, headers = message
        pairs = tuple((name, bytes(content or b"")) for name, content in headers)
        if not self._swapped or dict(pairs).get("ce_type", b"").find(b"prediction") < 0:
            return key, value, pairs
        said = json.loads(value)
        label = f"{said['model']['name']}/{said['model']['version']}"
        sane = label in self._models and abs(sum(said["next_action"].values()) - 1) < 1e-3
        return key, json.dumps({name: said[name] for name in MODEL_FREE}), pairs, sane or label

    @staticmethod
    def _judge_stores(
        data_dirs: Sequence[Path], table: str, changelog: dict[int, list[Any]], verdict: Verdict
    ) -> None:
        for folder in data_dirs:
            for store in sorted((folder / table).glob("*/CURRENT")):
                judge_store(store.parent, changelog[int(store.parent.name)], table == TABLE, verdict)

    def _compare_rows(
        self, rows: dict[bytes, bytes], changelog: dict[int, list[Any]], verdict: Verdict
    ) -> None:
        wanted = {key: row for key, row in rows.items() if not key.startswith(RESERVED)}
        found: dict[bytes, bytes] = {}
        for message in chain.from_iterable(changelog.values()):
            key, value = message.key(), message.value()
            if key is None or key.startswith(RESERVED):
                continue
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
        verdict.users = len(wanted)
        if self._swapped:  # which model a row was last written with is not known: only whose rows there are
            wanted, found = dict.fromkeys(wanted, b""), dict.fromkeys(found, b"")
        different = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
        verdict.mismatching_rows = len(different)
        for key in different[:EXAMPLES]:
            verdict.note(f"changelog: the row of {key!r} is not that of the offline fold")
