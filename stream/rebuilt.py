"""What it costs that a row's window makes the state anew: after a swap of models no state vector fits any more.

Each event is scored as if it were its user's first after a swap: a state rebuilt from the window before it, as the
worker rebuilds it, then the event itself with its row's true counts. That is up to 33 steps an event, so a sample of
the users is enough.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.columns import Columns, histories, take
from models.evaluation.predictions import KEPT_BY_EVENT, Predictions, of_events
from models.runtime import StepEngine
from models.split import at_lag
from stream.rows import RowLayout
from stream.sessions import fold_windows

SAMPLE_EVENTS: Final = 4000
_ROWS_AT_ONCE: Final = 1024


def sample_of_users(columns: Columns, events: int = SAMPLE_EVENTS) -> Columns:
    """Users drawn at random until they have so many events, whole, in their order; all if there are no more."""
    lengths = np.bincount(columns["row"])
    drawn = np.random.default_rng(0).permutation(len(lengths))
    enough = int(np.searchsorted(np.cumsum(lengths[drawn]), events)) + 1
    return histories(columns, np.flatnonzero(np.isin(columns["row"], drawn[:enough])))


def rebuilt_predictions(engine: StepEngine, columns: Columns, session_gap_ms: int) -> Predictions:
    """As ``models.evaluation.predictions.predictions_of``, but no state is carried from one event to the next."""
    kept: dict[str, list[NDArray]] = {name: [] for name in KEPT_BY_EVENT}
    before = {
        name: at_lag(column, columns, 1, 0)
        for name, column in columns.items()
        if name.startswith("window_") or name == "event_time_ms"
    }
    for start in range(0, len(columns["row"]), _ROWS_AT_ONCE):
        at = np.arange(start, min(start + _ROWS_AT_ONCE, len(columns["row"])))
        state = _states(engine, {name: column[at] for name, column in before.items()}, session_gap_ms)
        event = take(columns, at)
        event["row"], event["wave"] = np.arange(len(at), dtype=np.int32), np.zeros(len(at), np.int32)
        result = engine.step(state, before["window_category"][at], event)
        for name, parts in kept.items():
            parts.append(getattr(result, name))
    return of_events({name: np.concatenate(parts) for name, parts in kept.items()}, columns)


def _states(engine: StepEngine, before: Columns, session_gap_ms: int) -> NDArray[np.float16]:
    """State vectors (B, S) out of B windows, zeros where the window is empty; as ``stream.rounds`` rebuilds them."""
    artefact = engine.artefact
    count = len(before["window_count"])
    layout = RowLayout(len(artefact.actions), artefact.state_width, artefact.window)
    rows = layout.blank(count)
    rows["window_count"], rows["last_ms"] = before["window_count"], before["event_time_ms"]
    for name in rows.dtype.names or ():
        if name.startswith("w_"):
            rows[name] = before[f"window_{name.removeprefix('w_')}"]
    folded = fold_windows(rows, layout, session_gap_ms, len(artefact.features.extras))
    return engine.rebuild(count, folded)
