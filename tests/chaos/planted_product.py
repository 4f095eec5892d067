"""Bugs planted on purpose in the product's own worker: in its second stage, and in what it knows of time.

Each takes away one thing that makes alerts and timers survive; what tests/chaos/product.py compares must show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stream import group_detectors, groups_app, groups_stage
from stream.engine import service
from stream.engine.store import Store
from stream.group_due import DueRows
from stream.group_sources import Sources
from stream.stage import FIRST_MOMENT, Row, SourceMark
from tests.chaos.planted import EarlyOffsetsLog, LosingPartition


def _groups(**classes: Any) -> None:
    """Other classes for the engine of groups alone."""
    engine = groups_app.Engine
    groups_app.Engine = type("PlantedEngine", (engine,), classes)  # type: ignore[misc]


def alerts_after_rows() -> None:
    """Rows and position of groups are committed, and their alerts after them in a transaction of their own."""
    _groups(log_class=EarlyOffsetsLog)


def told_and_lost() -> None:
    """The records of every second chunk of groups, which are few and large, vanish while its range stays."""

    class Losing(LosingPartition):
        """More often than a stage of many small chunks."""

        every = 2

    _groups(partition_class=Losing)


def said_again() -> None:
    """What was said about a subject does not hold back the next finding."""

    def hold_back(said: Any, found: Any, cool_down_ms: int) -> Any:
        return group_detectors.hold_back(None, found, cool_down_ms)

    groups_stage.hold_back = hold_back


def due_only_in_memory() -> None:
    """The rows of groups that are due are known from what this life wrote: after a restart nobody judges the others."""

    class Forgetful(DueRows):
        """Made of nothing."""

        def __init__(self, rows: Iterable[tuple[bytes, int]] = ()) -> None:
            super().__init__(())

        def move(self, key: bytes, before_ms: int, due_ms: int) -> None:
            known = key in self.until(before_ms, 1 << 30)
            super().move(key, before_ms if known else 0, due_ms)

    groups_stage.DueRows = Forgetful  # type: ignore[misc]


def sources_only_in_memory() -> None:
    """How far the partitions of the input have come is forgotten with the process."""
    groups_app.Sources = lambda count, raw=None: Sources(count)  # type: ignore[misc, assignment]


def timers_not_restored() -> None:
    """Rows that come from the changelog come without the timers of their silences."""

    class Untimely(Store):
        """Keeps timers from the first micro-batch on."""

        _restoring = True

        def open(self) -> None:
            self._restoring = True
            super().open()

        def get(self, keys: list[bytes]) -> list[bytes | None]:
            if any(not key.startswith(b"\0") for key in keys):
                self._restoring = False
            return super().get(keys)

        def apply(
            self,
            rows: Iterable[Row],
            position: int,
            changelog_id: bytes,
            now_ms: int,
            before: Mapping[bytes, bytes | None] | None = None,
        ) -> None:
            kept = self._moved_timers
            if self._restoring:
                self._moved_timers = None
            super().apply(rows, position, changelog_id, now_ms, before)
            self._moved_timers = kept

    service.Store = Untimely  # type: ignore[misc]


def moment_only_in_memory() -> None:
    """Which timers were said is forgotten with the process: the source's mark holds no moment."""
    encode = SourceMark.encode
    SourceMark.encode = lambda mark: encode(mark._replace(said_before=FIRST_MOMENT))  # type: ignore[method-assign]


PLANTED: dict[str, Callable[[], None]] = {
    "alerts-after-rows": alerts_after_rows,
    "told-and-lost": told_and_lost,
    "said-again": said_again,
    "due-only-in-memory": due_only_in_memory,
    "sources-only-in-memory": sources_only_in_memory,
    "timers-not-restored": timers_not_restored,
    "moment-only-in-memory": moment_only_in_memory,
}
