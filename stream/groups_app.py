"""The groups stage of one worker: a second engine beside that of clicks, over the topic that those write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import structlog

from models.fraud.own_terms import OwnScores, plain_scores
from stream import buyer_rings, item_farms
from stream.alert_calibration import LabelledAlerts
from stream.boosted_items import BoostedItems
from stream.broker.topics import TopicInfo, describe_all
from stream.brushed_shops import BrushedShops
from stream.buyer_rings import BuyerRings
from stream.engine.exit import end_process
from stream.engine.kafka_log import TopicSet
from stream.engine.quiet import wait_for_nobody_quiet
from stream.engine.service import Engine, Plan
from stream.engine.store import Store
from stream.errors import ConfigurationError
from stream.group_detectors import MEETINGS, GroupDetector
from stream.group_erasure import AGAIN_KEY, ERASING_KEY, Erasures
from stream.group_records import GroupRecords, routed
from stream.group_sources import Sources
from stream.groups_stage import SOURCES_KEY, GroupsWork
from stream.item_farms import ItemFarms
from stream.label_notes import group_notes
from stream.labels_app import label_outputs, noting
from stream.local_rows import GROUPS_TABLE
from stream.metrics import GroupMetrics, Metrics
from stream.order_brushing import OrderBrushing
from stream.scoring import readable_id
from stream.settings import Settings
from stream.shared_devices import SharedDevices
from stream.stage import Work
from stream.topics import fresh_start
from stream.user_scores import ScoresInUse, user_watch

logger = structlog.get_logger("foreclick.groups")

RESTS, LONGEST_REST_S = 8, 0.25  # reads while a micro-batch waits, about
BATCH_LIMIT = 4096  # records of one micro-batch: several of one group are one fold and one row


def detectors_of(
    settings: Settings, topic: str, scores: Callable[[], OwnScores] = plain_scores
) -> list[GroupDetector]:
    """The detectors that run live.

    Args:
        topic: the input, which evidence names.
        scores: of users, by the model in use.

    Raises:
        ConfigurationError: the file of rules is wrong, or the settings silence a kind that there is not.
    """
    late_limit_ms = settings.late_limit_s * 1000
    found: list[GroupDetector] = [
        BrushedShops(OrderBrushing(topic, late_limit_ms=late_limit_ms)),
        ItemFarms(topic, late_limit_ms=late_limit_ms),
        BoostedItems(topic),
        BuyerRings(topic),
        SharedDevices(topic),
        user_watch(settings, topic, scores),
    ]
    kinds = {each.kind for each in found}
    silenced = set(filter(None, settings.groups.silenced.split(",")))
    if unknown := silenced - kinds:
        raise ConfigurationError(
            f"FORECLICK_GROUPS__SILENCED names {', '.join(sorted(unknown))}; kinds are {', '.join(sorted(kinds))}."
        )
    if item_farms.KIND in silenced:  # what it tells is all that rings are made of
        silenced.add(buyer_rings.KIND)
    return [each for each in found if each.kind not in silenced]


class Groups:
    """The second stage: topics, engine and metrics.

    Args:
        clicks: the engine of the first stage, in the same worker.
        labelled: gives alerts their probability.
        in_use: the artefact of the model that scores now.

    Raises:
        ConfigurationError: see ``detectors_of``.
    """

    def __init__(
        self,
        settings: Settings,
        clicks: Engine,
        metrics: Metrics,
        labelled: LabelledAlerts,
        in_use: Callable[[], Any],
    ):
        self.settings = settings
        self.labelled = labelled
        self._detectors = detectors_of(settings, settings.clicks_topic, ScoresInUse(in_use))
        self.metrics = GroupMetrics(metrics)
        self.engine = Engine(
            settings,
            self.prepare,
            release=self.release,
            table=GROUPS_TABLE,
            group=settings.groups_group,
            wait_ms=settings.groups.wait_ms,
            batch_limit=BATCH_LIMIT,
            # Records wait for a fuller micro-batch anyway; clicks commit a hundred times a second, each a request here.
            rest_s=min(settings.groups.wait_ms / 1000 / RESTS, LONGEST_REST_S),
            metrics=self.metrics,
        )
        self._clicks = clicks
        self._watching: asyncio.Task[None] | None = None

    async def prepare(self) -> Plan:
        """Check the topics; the first stage is up already."""
        settings = self.settings
        topics, source, partitions = await asyncio.to_thread(groups_topics, settings)
        detectors = self._detectors
        tells = any(MEETINGS in each.group_types for each in detectors)
        logger.info("groups", kinds=settings.groups.kinds, detectors=[each.kind for each in detectors])

        told = await asyncio.to_thread(label_outputs, settings)
        topics = replace(topics, outputs={**topics.outputs, **told})

        def make_work(partition: int, store: Store) -> Work[Any]:  # noqa: ARG001 - all alike
            (held,) = store.get([SOURCES_KEY])
            waiting = [key for prefix in (ERASING_KEY, AGAIN_KEY) for key, _ in store.reserved(prefix)]
            work = GroupsWork(
                detectors=detectors,
                sources=Sources(source.partitions, held),
                late_limit_ms=settings.late_limit_s * 1000,
                cool_down_ms=settings.groups.cool_down_s * 1000,
                alerts_topic=settings.alerts_fraud_topic,
                topic_id=readable_id(source.topic_id),
                source=settings.source_of(source.name),
                fetch=store.get,
                stored=store.items(),
                erasures=Erasures(waiting, store.page),
                told_to=(settings.groups_topic, partitions) if tells else None,
                observe=self.metrics.committed,
            )
            notes = group_notes(told_kinds(settings))
            return noting(settings, told, work, notes, lambda: self.labelled.calibration)

        self._watching = asyncio.create_task(
            wait_for_nobody_quiet(
                self._clicks, self.engine, source.partitions, settings.groups.quiet_s, end_process
            ),
            name="quiet partitions",
        )
        return Plan(topics, make_work)

    async def release(self) -> None:
        """Stop looking at the first stage."""
        if self._watching is not None:
            self._watching.cancel()

    def stats(self) -> dict[str, Any]:
        """Where every partition of groups stands."""
        described = self.engine.described()
        for part in self.engine.parts.values():
            described["partitions"][part.number] |= {
                "watermark_ms": part.stage.watermark_ms if part.stage else None,
                "quiet_sources": sorted(cast(GroupsWork, part.stage.work).sources.quiet)
                if part.stage
                else [],
            }
        return described


def groups_topics(settings: Settings) -> tuple[TopicSet, TopicInfo, int]:
    """The topics of the second stage, the input of the first, and how many partitions groups have.

    Its own input is among its outputs: meetings are told to the users' own groups.

    Raises:
        TopicError: one is missing, or the changelog has not the partitions of its source.
    """
    names = [
        settings.groups_topic,
        settings.groups_changelog_topic,
        settings.alerts_fraud_topic,
        settings.clicks_topic,
    ]
    source, changelog, alerts, clicks = describe_all(
        settings.kafka.librdkafka(), names, "run without groups: FORECLICK_GROUPS__ENABLED=false."
    )
    outputs = {alerts.name: alerts.partitions}
    outputs |= {routed(source.name, number): source.partitions for number in range(source.partitions)}
    topics = TopicSet.over(source, changelog, outputs, fresh_start(settings, changelog.name))
    return topics, clicks, source.partitions


def group_records(settings: Settings, partitions: int) -> GroupRecords | None:
    """What renders the records of one source partition; None when groups are off.

    Args:
        partitions: of the topic of groups.
    """
    if not settings.groups.enabled:
        return None
    return GroupRecords(settings.groups_topic, partitions, told_kinds(settings))


def told_kinds(settings: Settings) -> list[str]:
    """The types of groups whose records are written: what no detector looks at would only cost."""
    if not settings.groups.enabled:
        return []
    wanted = frozenset[str]().union(
        *(each.group_types for each in detectors_of(settings, settings.clicks_topic))
    )
    return [kind for kind in settings.groups.kinds.split(",") if kind in wanted]
