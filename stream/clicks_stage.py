"""The clicks stage put together: what settings and a model make of ``stream.scoring`` and ``stream.rounds``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from stream.churn_alerts import ChurnAlertRenderer
from stream.event_columns import NameCodes
from stream.events import Adapt
from stream.group_records import GroupRecords
from stream.model_step import ServedModel
from stream.outputs import PredictionRenderer
from stream.partition_names import PartitionNames
from stream.rounds import ClicksModel, ClicksRounds
from stream.rows import RowLayout
from stream.scoring import ClicksRequest, ClicksWork, Counts, readable_id
from stream.sessions import FoldRules
from stream.settings import Settings
from stream.silence import PartitionTimers
from stream.stage import Rendered
from stream.user_news import UserLevels
from stream.user_vectors import UserVectors


def clicks_rounds(
    settings: Settings, in_use: Callable[[], ServedModel], *, topic: str, topic_id: bytes
) -> ClicksRounds:
    """What all partitions of a source share, as the settings and the model want it: the worker's and the offline one.

    Args:
        in_use: the model that the next round is scored with.
    """
    source, named_id = settings.source_of(topic), readable_id(topic_id)

    def of_model(served: ServedModel) -> ClicksModel:
        artefact = served.artefact
        renderer = PredictionRenderer(
            artefact.name,
            artefact.version,
            artefact.actions.names,
            dict(zip(artefact.categories.codes.tolist(), artefact.categories.names, strict=True)),
            topic=topic,
            topic_id=named_id,
            churn_horizon_s=int(artefact.churn_horizon_s),
            source=source,
        )
        layout = RowLayout(len(artefact.actions), artefact.state_width, artefact.window)
        alerts = None
        if settings.churn.alerts:
            stays_away = settings.churn.threshold or artefact.manifest["thresholds"]["churn_probability"]
            alerts = ChurnAlertRenderer(
                topic=topic,
                topic_id=named_id,
                source=source,
                horizon_s=settings.churn.horizon_s or int(artefact.churn_horizon_s),
                threshold=1 - stays_away,
                odds=artefact.return_odds,
            )
        vectors = None
        if settings.user_vectors == "topic":
            vectors = UserVectors(
                artefact.name,
                artefact.version,
                topic_id=named_id,
                source=source,
            )
        return ClicksModel(served, layout, np.uint64(artefact.fingerprint), renderer, alerts, vectors)

    return ClicksRounds(
        in_use=in_use,
        of_model=of_model,
        topic_id=topic_id,
        rules=_rules(settings),
        codes=NameCodes(),
        predictions_topic=settings.predictions_topic,
        alerts_topic=settings.alerts_churn_topic,
        every=settings.predictions == "every",
        user_vectors=settings.user_vectors == "predictions",
        levels=UserLevels(round(settings.fraud.tempo_s * 1000), settings.fraud.anomaly),
    )


def clicks_work(
    settings: Settings,
    *,
    topic: str,
    topic_id: bytes,
    partition: int,
    score: Callable[[ClicksRequest], Awaitable[Rendered]],
    names: PartitionNames | None = None,
    timers: PartitionTimers | None = None,
    adapt: Adapt | None = None,
    observe: Callable[[Counts, float, float], None] | None = None,
    groups: GroupRecords | None = None,
) -> ClicksWork:
    """The clicks stage of one partition.

    Args:
        score: takes a request through a round.
        names: what this partition's store remembers.
        timers: of the rows in its store; None where churn is not looked for.
        groups: renders what the second stage is told; None offline.
    """
    return ClicksWork(
        topic=topic,
        topic_id=topic_id,
        partition=partition,
        dead_letters_topic=settings.dead_letters_topic,
        names=PartitionNames() if names is None else names,
        timers=timers,
        rules=_rules(settings),
        score=score,
        adapt=adapt,
        observe=observe or _tell_nobody,
        groups=groups,
        vectors_topic=settings.user_vectors_topic if settings.user_vectors == "topic" else None,
    )


def _rules(settings: Settings) -> FoldRules:
    return FoldRules(
        settings.session_gap_s * 1000, settings.late_limit_s * 1000, settings.future_limit_s * 1000
    )


def _tell_nobody(counts: Counts, received_s: float, committed_s: float) -> None: ...
