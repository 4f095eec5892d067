"""What LightGBM and logistic regression read: the state of a user after each event, as plain numbers.

The last five actions and gaps, counts and recency of each action, the place in the session, the shop's clock.
A missing number is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import tau

import numpy as np
from numpy.typing import NDArray

from models.baselines import unigram
from models.baselines.purchase_rate import constant
from models.columns import NEVER_S, WINDOW, Columns
from models.split import Split, at_lag, scored_events
from models.training_log import targets_of

LAGS = 5
_DAY_MS = 86_400_000
# Events like everybody's, by which a user's shares are smoothed.
_SHARE_MASS = 20.0


@dataclass(frozen=True)
class Examples:
    """Inputs (N, 5 lags and F numbers) and labels of each part; ``test_at``: the test events that have inputs."""

    fit: NDArray[np.float32]
    fit_label: NDArray[np.int64]
    tune: NDArray[np.float32]
    tune_label: NDArray[np.int64]
    test: NDArray[np.float32]
    test_at: NDArray[np.int64]


def next_action_examples(split: Split) -> Examples:
    """Every event but a user's first, seen from the event before it; labels are actions."""

    def before(columns: Columns) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        later = np.flatnonzero(columns["wave"] > 0)
        return inputs(columns, split)[later - 1], later

    (fit, fit_at), (tune, tune_at), (test, test_at) = map(before, (split.fit, split.tune, split.test))
    labels = split.fit["action"][fit_at], split.tune["action"][tune_at]
    return Examples(fit, labels[0].astype(np.int64), tune, labels[1].astype(np.int64), test, test_at)


def purchase_examples(split: Split) -> Examples:
    """Every test event, and the others' events whose session's end is known; label 1 = a purchase follows in it."""

    def known(columns: Columns) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        counted = scored_events(columns, split.purchase_code).purchase
        label = targets_of(columns, split.purchase_code).purchase[counted]
        return inputs(columns, split)[counted], label.astype(np.int64)

    (fit, fit_label), (tune, tune_label) = known(split.fit), known(split.tune)
    test = inputs(split.test, split)
    return Examples(fit, fit_label, tune, tune_label, test, np.arange(len(test)))


Predicted = Callable[[Examples, NDArray[np.int64]], NDArray[np.float64]]


def next_action_by(predicted: Predicted, split: Split) -> NDArray[np.float64]:
    """The distribution of each test event's action, (N, A); that of everybody where there is nothing to learn from.

    Args:
        predicted: (examples, classes) -> probabilities of the classes for the test examples.
    """
    examples = next_action_examples(split)
    p_NA = np.tile(unigram.probabilities(split.fit, split.n_actions), (len(split.test["row"]), 1))
    classes = np.unique(examples.fit_label)
    if len(classes) >= 2 and len(examples.test_at):
        p_classes = predicted(examples, classes)
        p_NA[examples.test_at] = with_the_unseen(p_classes, classes, len(examples.fit_label), split.n_actions)
    return p_NA


def purchase_by(predicted: Predicted, split: Split) -> NDArray[np.float64]:
    """The probability that a purchase follows each test event in its session, (N,); a constant where nothing is known.

    Args:
        predicted: (examples, classes) -> the probability of a purchase for each test example.
    """
    examples = purchase_examples(split)
    classes = np.unique(examples.fit_label)
    if len(classes) < 2 or not len(examples.test_at):
        return constant(split)
    return predicted(examples, classes)


def with_the_unseen(
    p_NC: NDArray, classes: NDArray[np.int64], n_fitted: int, n_actions: int
) -> NDArray[np.float64]:
    """Probabilities of the classes seen in fitting as (N, A): every action as if seen once more than it was."""
    p_NA = np.full((len(p_NC), n_actions), 1.0)
    p_NA[:, classes] += n_fitted * p_NC
    return p_NA / p_NA.sum(axis=1, keepdims=True)


def inputs(columns: Columns, split: Split) -> NDArray[np.float32]:
    """Lags and numbers after each event, (N, 5 + F), of actions that training users had."""
    share_A = unigram.probabilities(split.fit, split.n_actions)
    had_A = np.bincount(split.fit["action"], minlength=split.n_actions) > 0
    lags = last_actions(columns, split.n_actions).astype(np.float32)
    return np.concatenate([lags, numbers(columns, share_A, had_A, split.log.utc_offset_s)], axis=1)


def last_actions(columns: Columns, n_actions: int) -> NDArray[np.int64]:
    """The actions of each event and of the four before it, (N, 5), newest first; ``n_actions`` = none."""
    action = columns["action"].astype(np.int64)
    return np.stack([at_lag(action, columns, lag, n_actions) for lag in range(LAGS)], axis=1)


def numbers(
    columns: Columns, share_A: NDArray[np.float64], had_A: NDArray[np.bool_], utc_offset_s: int
) -> NDArray[np.float32]:
    """Everything else after each event, (N, F).

    Args:
        columns: the events.
        share_A: of each action among the training users' events.
        had_A: the actions that training users had.
        utc_offset_s: the shop's clock against UTC.
    """
    n = len(columns["row"])
    rank = np.arange(n)
    gap_s = np.where(columns["gap_ms"] < 0, np.nan, columns["gap_ms"] * 1e-3)
    local_ms = columns["event_time_ms"] + 1000 * utc_offset_s
    day = local_ms % _DAY_MS * (tau / _DAY_MS)
    starts = columns["new_session"] | (columns["wave"] == 0)
    session_start_ms = columns["event_time_ms"][np.maximum.accumulate(np.where(starts, rank, 0))]
    age_s = np.where(columns["action_age_s"] == NEVER_S, np.nan, columns["action_age_s"].astype(np.float64))
    age_s[rank, columns["action"]] = 0.0
    life_A = columns["action_life"].astype(np.float64)
    own_A = (life_A + _SHARE_MASS * share_A) / (life_A.sum(axis=1, keepdims=True) + _SHARE_MASS)
    held = np.arange(WINDOW) >= WINDOW - columns["window_count"][:, None].astype(np.int64)
    alone = [
        *(np.log1p(at_lag(gap_s, columns, lag, np.nan)) for lag in range(LAGS)),
        np.log1p(columns["session_position"]),
        np.log1p(columns["session_index"]),
        np.log1p(columns["life_events"]),
        np.log1p(np.maximum(columns["event_time_ms"] - session_start_ms, 0) * 1e-3),
        day * (24 / tau),
        np.sin(day),
        np.cos(day),
        local_ms // _DAY_MS % 7,
        columns["log_price"],
        columns["repeat_item"],
        columns["repeat_category"],
        _in_window(columns, "item", held),
        _in_window(columns, "category", held),
    ]
    each = [np.log(own_A), np.log1p(columns["action_session"]), np.log1p(age_s)]
    extra = columns.get("extra", np.zeros((n, 0)))
    parts = [np.stack(alone, axis=1), *(part[:, had_A] for part in each), extra]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _in_window(columns: Columns, name: str, held: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How often the event's item (category) stands in the window, its own place included; NaN without one."""
    same = (columns[f"window_{name}"] == columns[name][:, None]) & held
    return np.where(columns[name] == 0, np.nan, np.log1p(same.sum(axis=1)))
