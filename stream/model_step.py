"""A model that can score, and parts of its results."""

from __future__ import annotations

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


def part_of(result: Any, events: np.ndarray) -> Any:
    """A StepResult of some of its events; states are shared, as events refer to them by slot."""
    by_event = {
        entry.name: getattr(result, entry.name)[events]
        for entry in fields(result)
        if entry.name not in ("state", "hidden_state")
    }
    return replace(result, **by_event)
