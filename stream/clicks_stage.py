"""The clicks stage of one partition put together: what settings and a model make of ``stream.scoring``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from stream.events import Adapt
from stream.model_step import ScoreRequest, ServedModel
from stream.outputs import PredictionRenderer
from stream.partition_names import PartitionNames
from stream.rows import RowLayout
from stream.scoring import ClicksWork, Counts, PartitionModel, readable_id
from stream.sessions import FoldRules, NameCodes
from stream.settings import Settings


def clicks_work(
    settings: Settings,
    in_use: Callable[[], ServedModel],
    *,
    topic: str,
    topic_id: bytes,
    partition: int,
    score: Callable[[ScoreRequest], Awaitable[Any]],
    names: PartitionNames | None = None,
    codes: NameCodes | None = None,
    adapt: Adapt | None = None,
    observe: Callable[[Counts, float, float], None] | None = None,
) -> ClicksWork:
    """The clicks stage of one partition, as the settings and the model want it: the worker's and the offline one.

    Args:
        in_use: the model that the next micro-batch is scored with.
        names: what this partition's store remembers.
        codes: a cache of name codes that partitions may share.
    """

    def of_partition(served: ServedModel) -> PartitionModel:
        artefact = served.artefact
        renderer = PredictionRenderer(
            artefact.name,
            artefact.version,
            artefact.actions.names,
            dict(zip(artefact.categories.codes.tolist(), artefact.categories.names, strict=True)),
            topic=topic,
            topic_id=readable_id(topic_id),
            partition=partition,
            churn_horizon_s=int(artefact.churn_horizon_s),
            source=f"/{settings.app_id}/{topic}",
        )
        layout = RowLayout(len(artefact.actions), artefact.state_width, artefact.window)
        return PartitionModel(served, layout, np.uint64(artefact.fingerprint), renderer)

    return ClicksWork(
        topic=topic,
        topic_id=topic_id,
        partition=partition,
        predictions_topic=settings.predictions_topic,
        dead_letters_topic=settings.dead_letters_topic,
        in_use=in_use,
        of_partition=of_partition,
        names=PartitionNames() if names is None else names,
        rules=FoldRules(
            settings.session_gap_s * 1000, settings.late_limit_s * 1000, settings.future_limit_s * 1000
        ),
        codes=NameCodes() if codes is None else codes,
        score=score,
        adapt=adapt,
        every=settings.predictions == "every",
        user_vectors=settings.user_vectors,
        observe=observe or _tell_nobody,
    )


def _tell_nobody(counts: Counts, received_s: float, committed_s: float) -> None: ...
