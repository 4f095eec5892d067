"""Histories served in micro-batches, with states carried from one to the next."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from models.columns import Columns
from models.micro_batch import StepResult
from models.runtime import StepEngine
from tests.models import synthetic


def in_order_of_time(columns: Columns) -> np.ndarray:
    """The events of all users as they happened."""
    return np.argsort(columns["event_time_ms"], kind="stable")


class Shop:
    """Carries states from micro-batch to micro-batch, as a store does."""

    def __init__(self, engine: StepEngine, columns: Columns) -> None:
        """Begin with new users only."""
        self.engine, self.columns = engine, columns
        self.state = np.zeros((int(columns["row"].max()) + 1, engine.artefact.state_width), np.float16)

    def step(self, index: np.ndarray) -> StepResult:
        """Serve the events at these places as one micro-batch."""
        users, before, part = synthetic.micro_batch(self.columns, index)
        result = self.engine.step(self.state[users], before, part)
        self.state[users] = result.state
        return result


def by_event(parts: list[tuple[np.ndarray, StepResult]], count: int) -> dict[str, np.ndarray]:
    """Outputs of several micro-batches as if they had been one, in the order of the columns."""
    out = {}
    for name in (*(field.name for field in fields(StepResult)), "user_vector"):
        if name in ("state", "hidden_state", "event_slot", "gap_mixture"):
            continue
        first = getattr(parts[0][1], name)
        out[name] = np.zeros((count, *first.shape[1:]), first.dtype)
        for index, result in parts:
            out[name][index] = getattr(result, name)
    return out


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Every output has the same bytes."""
    for name, values in one.items():
        assert values.tobytes() == other[name].tobytes(), name
