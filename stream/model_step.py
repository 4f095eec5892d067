"""What partitions ask of a model, and the model's step over the requests of several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ServedModel:
    """A model that can score: its artefact (``models.registry``) and the step engine over it."""

    artefact: Any
    engine: Any

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.artefact.name}/{self.artefact.version}"


@dataclass(slots=True)
class ScoreRequest:
    """What a partition hands to the model: B rows and M events, see ``models.runtime.StepEngine.step``.

    ``stale`` are rows whose state vector another model made, with the events of their windows: they are rebuilt first.
    """

    model: ServedModel
    state: np.ndarray
    window_category: np.ndarray
    columns: dict[str, np.ndarray]
    stale: tuple[np.ndarray, dict[str, np.ndarray]] | None = None

    @property
    def events(self) -> int:
        """Events to score."""
        return len(self.columns["row"])

    @property
    def work(self) -> int:
        """Events that the model goes through, those of rebuilt windows included."""
        return self.events + (len(self.stale[1]["row"]) if self.stale is not None else 0)


def step(requests: Sequence[ScoreRequest]) -> list[Any]:
    """Requests of several partitions through one step of each model, and apart again.

    Called by the scorer in the model's thread. While a model is exchanged some requests ask the old one and some the
    new one; no request is ever scored by two. Rows and events are concatenated: no bit of a result depends on who
    shares the batch.

    Returns:
        A StepResult for each request, in order.
    """
    if all(request.model is requests[0].model for request in requests):
        return _step(requests)
    results: list[Any] = [None] * len(requests)
    for model in {id(request.model): request.model for request in requests}.values():
        mine = [place for place, request in enumerate(requests) if request.model is model]
        for place, result in zip(mine, _step([requests[place] for place in mine]), strict=True):
            results[place] = result
    return results


def _step(requests: Sequence[ScoreRequest]) -> list[Any]:
    engine = requests[0].model.engine
    for request in requests:
        if request.stale is not None:
            _rebuild(request)
    if len(requests) == 1:
        only = requests[0]
        return [engine.step(only.state, only.window_category, only.columns)]
    state = np.concatenate([request.state for request in requests])
    window_category = np.concatenate([request.window_category for request in requests])
    row_ends = np.cumsum([len(request.state) for request in requests]).tolist()
    event_ends = np.cumsum([request.events for request in requests]).tolist()
    columns = {
        name: np.concatenate([request.columns[name] for request in requests])
        for name in requests[0].columns
        if name != "row"
    }
    columns["row"] = np.concatenate(
        [
            request.columns["row"] + (end - len(request.state))
            for request, end in zip(requests, row_ends, strict=True)
        ]
    ).astype(np.int32)
    merged = engine.step(state, window_category, columns)
    results, row, event = [], 0, 0
    for row_end, event_end in zip(row_ends, event_ends, strict=True):
        results.append(part_of(merged, slice(event, event_end), slice(row, row_end)))
        row, event = row_end, event_end
    return results


def _rebuild(request: ScoreRequest) -> None:
    """Replace state vectors of another model by what this one makes of the rows' windows."""
    assert request.stale is not None
    rows, columns = request.stale
    request.state[rows] = request.model.engine.rebuild(len(rows), columns)


def part_of(result: Any, events: slice | np.ndarray, rows: slice = slice(None)) -> Any:
    """A StepResult of some of its events and rows; hidden states are shared, as events refer to them by slot."""
    by_event = {
        entry.name: getattr(result, entry.name)[events]
        for entry in fields(result)
        if entry.name not in ("state", "hidden_state")
    }
    return replace(result, state=result.state[rows], **by_event)
