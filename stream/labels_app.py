"""The labels stage of one worker: an engine beside the others, over the topic of labels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from stream.alert_calibration import AlertCalibration
from stream.broker.topics import describe_all
from stream.engine.kafka_log import TopicSet
from stream.engine.service import Engine, Plan
from stream.engine.store import Store
from stream.group_records import routed
from stream.label_join import Tally, tallied
from stream.label_metrics import LabelMetrics
from stream.label_notes import NotesOf, Noting
from stream.labels_stage import TALLY_KEY, LabelsWork
from stream.local_rows import LABELS_TABLE
from stream.metrics import Metrics
from stream.scoring import readable_id
from stream.settings import Settings
from stream.stage import Work
from stream.topics import fresh_start

logger = structlog.get_logger("foreclick.labels")

BATCH_LIMIT = 128  # records of one micro-batch; one may hold 256 orders
_OTHERWISE = "run without labels: FORECLICK_LABELS__ENABLED=false."


class Labels:
    """The stage of labels: topics, engine and metrics."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self.settings = settings
        self.metrics = LabelMetrics(metrics, self.tally)
        self.engine = Engine(
            settings,
            self.prepare,
            table=LABELS_TABLE,
            group=settings.labels_group,
            wait_ms=settings.labels.wait_ms,
            batch_limit=BATCH_LIMIT,
            metrics=self.metrics,
        )

    async def prepare(self) -> Plan:
        """Check the topics."""
        settings = self.settings
        topics = await asyncio.to_thread(labels_topics, settings)
        logger.info("labels", audit_rate=settings.labels.audit_rate)

        def make_work(partition: int, store: Store) -> LabelsWork:
            (held,) = store.get([TALLY_KEY])
            return LabelsWork(
                topic=topics.source,
                topic_id=readable_id(topics.source_id),
                source=settings.source_of(topics.source),
                partition=partition,
                dead_letters_topic=settings.dead_letters_topic,
                audit_topic=settings.alerts_audit_topic,
                audit_rate=settings.labels.audit_rate,
                control=routed(settings.control_topic, 0),
                tally=held,
                observe=self.metrics.committed,
            )

        return Plan(topics, make_work)

    def tally(self) -> Tally:
        """Counts over this worker's partitions of labels."""
        works = [part.stage.work for part in self.engine.open_partitions() if part.stage is not None]
        return tallied(work.tally for work in works if isinstance(work, LabelsWork))

    def stats(self) -> dict[str, Any]:
        """Where every partition of labels stands."""
        return self.engine.described()


def label_outputs(settings: Settings) -> dict[str, int]:
    """The partitions of the topic of labels as outputs of another stage; empty when labels are off.

    Raises:
        TopicError: the topic is missing.
    """
    if not settings.labels.enabled:
        return {}
    (labels,) = describe_all(settings.kafka.librdkafka(), [settings.labels_topic], _OTHERWISE)
    return {routed(labels.name, number): labels.partitions for number in range(labels.partitions)}


def noting(
    settings: Settings,
    outputs: Mapping[str, int],
    work: Work[Any],
    notes_of: NotesOf,
    calibration: Callable[[], AlertCalibration],
) -> Any:
    """A stage's work that tells the stage of labels; the work itself when labels are off.

    Args:
        outputs: of ``label_outputs``, among those of the stage.
        notes_of: of its decoded records.
        calibration: as of now.
    """
    if not outputs:
        return work
    topics = [settings.alerts_fraud_topic, settings.alerts_churn_topic]
    return Noting(
        work, alert_topics=topics, outputs=list(outputs), notes_of=notes_of, calibration=calibration
    )


def labels_topics(settings: Settings) -> TopicSet:
    """The topics of the stage.

    Raises:
        TopicError: one is missing, or the changelog has not the partitions of its source.
    """
    names = [
        settings.labels_topic,
        settings.labels_changelog_topic,
        settings.alerts_audit_topic,
        settings.dead_letters_topic,
        settings.control_topic,
    ]
    source, changelog, audits, letters, _ = describe_all(settings.kafka.librdkafka(), names, _OTHERWISE)
    # Written under the ids of all partitions, as an output that names its partition may be.
    outputs = {
        audits.name: audits.partitions,
        letters.name: letters.partitions,
        routed(settings.control_topic, 0): 1,
    }
    return TopicSet.over(source, changelog, outputs, fresh_start(settings, changelog.name))
