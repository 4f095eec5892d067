"""The network's predictions, out of the step engine that serves them, in the shapes that every metric takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from models.columns import WINDOW, Columns, take
from models.micro_batch import StepResult
from models.runtime import StepEngine
from models.split import at_lag

_EVENTS_AT_ONCE = 100_000
KEPT_BY_EVENT = (
    "next_action",
    "top_category",
    "top_category_probability",
    "purchase_probability",
    "median_gap_s",
    "terms",
)


@dataclass(frozen=True)
class Predictions:
    """N events, each measured against what really came.

    ``next_action`` (N, A) and ``next_category`` (N, 20), with its probabilities, were made before the event, by the
    user's earlier ones (zeros for a user's first); ``purchase`` (N,) and ``gap_s`` (N,) are made after it.
    ``gap_nats`` (N,): of the gap before the event, under the prediction made before it.
    """

    next_action: NDArray[np.float32]
    next_category: NDArray[np.uint32]
    next_category_probability: NDArray[np.float32]
    purchase: NDArray[np.float32]
    gap_s: NDArray[np.float32]
    gap_nats: NDArray[np.float32]


def run(engine: StepEngine, columns: Columns) -> StepResult:
    """Every user from the zero state through all of its events, as the worker would serve them."""
    users = int(columns["row"].max()) + 1 if len(columns["row"]) else 0
    state = np.zeros((users, engine.artefact.state_width), np.float16)
    return engine.step(state, np.zeros((users, WINDOW), np.uint32), columns)


def predictions_of(
    engine: StepEngine, columns: Columns, advance: Callable[[int], None] | None = None
) -> Predictions:
    """Predictions of all events of some users, each user's contiguous, from the first one on.

    Users go through the engine some at a time, which bounds the memory and changes no bit.

    Args:
        engine: of the model.
        columns: rows numbered from 0 in their order.
        advance: told how many events are done.
    """
    kept: dict[str, list[NDArray]] = {name: [] for name in KEPT_BY_EVENT}
    done = 0
    for part in _users_at_a_time(columns):
        result = run(engine, part)
        for name, parts in kept.items():
            parts.append(getattr(result, name))
        done += len(part["row"])
        if advance is not None:
            advance(done)
    empty = run(engine, take(columns, np.zeros(0, np.int64)))
    return of_events(
        {name: np.concatenate([getattr(empty, name), *parts]) for name, parts in kept.items()}, columns
    )


def of_events(result: dict[str, NDArray], columns: Columns) -> Predictions:
    """What was predicted after each event, told to the events that it is about."""
    return Predictions(
        next_action=at_lag(result["next_action"], columns, 1, 0),
        next_category=at_lag(result["top_category"], columns, 1, 0),
        next_category_probability=at_lag(result["top_category_probability"], columns, 1, 0),
        purchase=result["purchase_probability"],
        gap_s=result["median_gap_s"],
        gap_nats=result["terms"][:, 2],
    )


def part_of(predictions: Predictions, events: NDArray) -> Predictions:
    """Those of some events."""
    return replace(
        predictions, **{field.name: getattr(predictions, field.name)[events] for field in fields(predictions)}
    )


def scored(columns: Columns) -> NDArray[np.bool_]:
    """The events whose action counts: all but a user's first, which nobody can predict from the user."""
    return columns["wave"] > 0


def _users_at_a_time(columns: Columns) -> Iterator[Columns]:
    first = np.flatnonzero(columns["wave"] == 0)
    ends = np.append(first[1:], len(columns["row"]))[: len(first)]
    start = 0
    for user, end in enumerate(ends):
        if end - start >= _EVENTS_AT_ONCE or user == len(ends) - 1:
            part = take(columns, np.arange(start, end))
            part["row"] = part["row"] - part["row"][0]
            yield part
            start = end
