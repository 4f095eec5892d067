"""The clicks stage without a broker: records in, the pipeline's own predictions and dead letters out.

The same decoding, fold, model step and rendering as the worker's, over an in-memory dict instead of RocksDB and
without transactions. What it gives for a partition's records is what the pipeline wrote for them, byte for byte,
however either of them cut the records into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

from models.registry import Artefact
from models.runtime import StepEngine
from stream.clicks_stage import clicks_rounds, clicks_work
from stream.errors import BrokenInvariant
from stream.files import FileRecord
from stream.formats import adapt_object
from stream.group_records import GroupRecords
from stream.model_step import ServedModel
from stream.rounds import FoldedRound
from stream.scoring import ClicksRequest
from stream.settings import Settings
from stream.silence import PartitionTimers, SortedIndex, moved_timers
from stream.stage import RESERVED, Rendered

MICRO_BATCH = 4096
NO_TOPIC_ID = bytes(16)  # of records that come from a file


class OfflineRecord(NamedTuple):
    """A record as the stage reads it, from elsewhere than a fetched chunk."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp: int = 0


def records_of(lines: Iterable[FileRecord]) -> Iterator[OfflineRecord]:
    """Lines of a file as records; the offset is the line's place, from 0, in the order in which they come."""
    for offset, line in enumerate(lines):
        yield OfflineRecord(offset, line.key, line.value)


def score_batches(
    records: Iterable[Any],
    settings: Settings,
    artefact: Artefact,
    step_engine: StepEngine,
    topic: str,
    *,
    topic_id: bytes = NO_TOPIC_ID,
    partition: int = 0,
    adapt: Callable[[dict[str, Any]], dict[str, Any] | None] | None = adapt_object,
    micro_batch: int = MICRO_BATCH,
    observe: Callable[[ClicksRequest, FoldedRound, Any], None] | None = None,
    groups: GroupRecords | None = None,
) -> Iterator[Rendered]:
    """Fold and score records, a micro-batch at a time.

    Args:
        records: of one partition (``OfflineRecord`` or a consumer's), in the order of their offsets.
        settings: names of the outputs, limits of sessions and lateness, ``predictions`` and ``user_vectors``.
        artefact: the model, loaded and checked.
        step_engine: over that artefact.
        topic: the source that predictions name.
        topic_id: of the source; it is part of ``ce_id`` and of the ids of events that have none.
        partition: of the source.
        adapt: recognises foreign shapes; None takes canonical events only.
        micro_batch: records folded and scored at once; no bit depends on it.
        observe: sees each micro-batch with what the model answered, before it is rendered.
        groups: renders what a second stage is told; None where there is none.

    Returns:
        Messages by topic, rows and counts, as the worker would have committed them. Nothing is ahead of the clock:
        a file has no clock, so no event is rejected as ``future``.
    """
    served = ServedModel(artefact, step_engine)
    rounds = clicks_rounds(settings, lambda: served, topic=topic, topic_id=topic_id)

    async def score(request: ClicksRequest) -> Rendered:
        folded = rounds.fold([request])
        scores = rounds.step(folded)
        if observe is not None:
            observe(request, folded, scores)
        return rounds.render(folded, scores)[0]

    index = SortedIndex()
    work = clicks_work(
        settings,
        topic=topic,
        topic_id=topic_id,
        partition=partition,
        score=score,
        timers=PartitionTimers(index) if settings.churn.alerts else None,
        adapt=adapt,
        groups=groups,
    )
    rows: dict[bytes, bytes] = {}
    remaining = iter(records)
    while (batch := list(islice(remaining, micro_batch))) or work.due():
        decoded = work.decode(batch)
        rendered = _outcome(work.score(decoded, [rows.get(key) for key in decoded.keys], None))
        after = {key: row for key, row in rendered.rows if not key.startswith(RESERVED)}
        index.move(*moved_timers(list(after), [rows.get(key) for key in after], list(after.values())))
        for key, row in after.items():
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row
        work.pass_time(rendered.watermark_ms, rendered.said_before)
        yield rendered


def _outcome(coroutine: Coroutine[Any, Any, Rendered]) -> Rendered:
    """What a coroutine returns that waits for nothing: there is no scorer to share, so no loop is needed."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return cast(Rendered, ended.value)
    raise BrokenInvariant("The offline score waited for something that nobody will do.")
