"""Two-sided anomaly: an event can be too surprising, and a user can be too predictable.

Surprise is the network's: the sum of the terms of one event under the prediction made before it. Too predictable is
a detector of its own: over the last 32 events, gaps too regular, actions in a loop, always the same items; people
have some of each, so only what exceeds their usual measure counts. Both raw numbers become scores by quantiles of a
reference population, kept for users with few and with many events apart, because a short history surprises more.
The reference are the tuning users of the training log: the network was not fitted on them, and they are not the
users judged later. A score of 0.99 says: one event in a hundred of the reference was at least as odd.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log1p

import numpy as np
import torch
from numpy.typing import NDArray

from models.columns import WINDOW, Columns
from models.features import padded_rows

BUCKET_EDGES = (2, 4, 8, 16, 32)
BUCKETS = len(BUCKET_EDGES) + 1
LEVELS = np.array(
    [*np.arange(0, 0.95, 0.05), 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995], np.float64
)
# By position in a table of 32: its level, and how far it is to the next one.
_LEVEL = np.concatenate([LEVELS, np.ones(32 - len(LEVELS))])
_RISE = np.append(np.diff(LEVELS), np.zeros(33 - len(LEVELS)))
_SESSION_LOG_GAP = log1p(1800.0)
_LOOP_LAGS = (2, 3, 4, 5)


def _bits(flags: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """32 flags a row, in any shape, as one number a row: counting its bits is ten times faster than a sum."""
    return np.packbits(flags).view(np.uint32)


# Entry [lag's place, c]: which slots of a window with c events have one ``lag`` before them in it, and how many.
_LAGS = (1, *_LOOP_LAGS)
_PAIRED = np.stack(
    [_bits(np.arange(WINDOW) >= lag + WINDOW - np.arange(WINDOW + 1)[:, None]) for lag in _LAGS]
)
_PAIRS = np.maximum(np.bitwise_count(_PAIRED), 1).astype(np.float32)


def predictability_statistics(columns: Columns) -> NDArray[np.float32]:
    """The three statistics of each event's window, (N, 3), without unit; NaN where the window is too short.

    ``regular_gaps``: minus the log of the spread of the log gaps within sessions. ``action_loop``: how much better
    the action 2 to 5 events ago agrees than the last one. ``same_items``: the share of repeats among the items.
    """
    count = columns["window_count"].astype(np.int64)

    action = columns["window_action"].reshape(-1)
    equal = np.zeros((len(_LAGS), len(action)), np.bool_)
    for place, lag in enumerate(_LAGS):
        np.equal(action[lag:], action[:-lag], out=equal[place, lag:])
    paired = _bits(equal).reshape(len(_LAGS), -1) & _PAIRED.take(count, axis=1)
    agreement = np.bitwise_count(paired) / _PAIRS.take(count, axis=1)
    loop = np.where(count >= 8, np.maximum.reduce(agreement[1:]) - agreement[0], np.nan)

    item = np.sort(columns["window_item"], axis=1)
    repeated = np.zeros(item.shape, np.bool_)
    np.equal(item[:, 1:], item[:, :-1], out=repeated[:, 1:])
    named = _bits(item != 0)
    items, repeats = np.bitwise_count(named), np.bitwise_count(named & _bits(repeated))
    same = np.where(items >= 4, repeats / np.maximum(items, 1), np.nan)

    return np.stack([_regularity(columns, count), loop, same], axis=1, dtype=np.float32, casting="unsafe")


def _regularity(columns: Columns, count: NDArray[np.int64]) -> NDArray[np.float32]:
    """Minus the log of the standard deviation of log gaps within sessions; NaN below 4 gaps. On whole tiles."""
    n, rows = len(count), padded_rows(len(count))
    gap = torch.zeros(rows, WINDOW)
    gap[:n] = torch.from_numpy(columns["window_log_gap"])
    # The oldest slot has no gap inside the window, and the first event ever has none at all.
    slot = torch.arange(WINDOW, dtype=torch.int16)
    inside = gap < _SESSION_LOG_GAP
    inside[:n] &= slot > torch.from_numpy((WINDOW - count).astype(np.int16))[:, None]
    gaps = np.bitwise_count(_bits(inside.numpy()))
    number = torch.from_numpy(np.maximum(gaps, 1).astype(np.float32))
    kept = gap.mul_(inside)
    mean = kept.sum(dim=1) / number
    variance = (kept * kept).sum(dim=1) / number - mean * mean
    # 0.02 is a spread that only machines have; below it all are alike.
    regularity = -torch.log(torch.sqrt(variance.clamp_min_(0.0)) + 0.02)
    return np.where(gaps >= 4, regularity.numpy(), np.float32(np.nan))[:n]


def bucket_of(life_events: NDArray) -> NDArray[np.int64]:
    """The bucket of a user's number of events: 1, 2-3, 4-7, 8-15, 16-31, 32 and more."""
    return np.searchsorted(BUCKET_EDGES, life_events, side="right")


@dataclass(frozen=True)
class Anomaly:
    """Scores in 0..1, one an event, float32."""

    too_predictable: NDArray[np.float32]
    score: NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What is usual: centre and scale of each statistic, and quantiles at LEVELS, a bucket a row."""

    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    surprisal: NDArray[np.float64]
    predictable: NDArray[np.float64]
    either: NDArray[np.float64]

    @classmethod
    def fit(cls, life_events: NDArray, surprisal_nats: NDArray, statistics: NDArray[np.float32]) -> Reference:
        """Learn what is usual from the events of a reference population."""
        bucket = bucket_of(life_events)
        members = [_nearest_members(bucket, b) for b in range(BUCKETS)]
        center, scale = np.zeros((BUCKETS, 3)), np.ones((BUCKETS, 3))
        for b, chosen in enumerate(members):
            for s in range(3):
                values = statistics[chosen, s]
                values = values[~np.isnan(values)]
                if len(values) >= 20:
                    center[b, s], high = np.quantile(values, (0.5, 0.9))
                    scale[b, s] = max(high - center[b, s], 1e-3)
        center, scale = np.round(center, 6), np.round(scale, 6)
        blank = np.zeros((BUCKETS, len(LEVELS)))
        draft = cls(center, scale, blank, blank, blank)
        excess = draft.excess(bucket, statistics)
        draft = cls(center, scale, _quantiles(surprisal_nats, members), _quantiles(excess, members), blank)
        worse = np.maximum(
            _score(surprisal_nats, bucket, draft.surprisal), _score(excess, bucket, draft.predictable)
        )
        return cls(center, scale, draft.surprisal, draft.predictable, _quantiles(worse, members))

    def excess(self, bucket: NDArray, statistics: NDArray[np.float32]) -> NDArray[np.float64]:
        """How far the statistics exceed the usual, summed; 0 for a usual or short window."""
        z = (statistics - self.center[bucket]) / self.scale[bucket]
        z = np.where(z > 0, z, 0.0)
        return z[:, 0] + z[:, 1] + z[:, 2]

    def judge(
        self, life_events: NDArray, surprisal_nats: NDArray, statistics: NDArray[np.float32]
    ) -> Anomaly:
        """Scores of events; each depends on its own numbers alone."""
        bucket = bucket_of(life_events)
        predictable = _score(self.excess(bucket, statistics), bucket, self.predictable)
        worse = np.maximum(_score(surprisal_nats, bucket, self.surprisal), predictable)
        return Anomaly(predictable.astype("f4"), _score(worse, bucket, self.either).astype("f4"))

    def as_dict(self) -> dict[str, list]:
        """As a manifest keeps it."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, values: dict[str, list]) -> Reference:
        """Read what ``as_dict`` wrote."""
        return cls(**{name: np.array(values[name], np.float64) for name in cls.__dataclass_fields__})


def _nearest_members(bucket: NDArray, wanted: int) -> NDArray:
    """Events of a bucket, widened to its neighbours until there are 200 (or all there are)."""
    for reach in range(BUCKETS):
        chosen = np.flatnonzero(np.abs(bucket - wanted) <= reach)
        if len(chosen) >= 200:
            break
    return chosen


def _quantiles(values: NDArray, members: list[NDArray]) -> NDArray[np.float64]:
    if not len(values):
        return np.tile(LEVELS, (BUCKETS, 1))
    table = np.stack([np.quantile(values[chosen], LEVELS) for chosen in members])
    # Strictly rising, so that a value shared by many (often 0) gets their lowest level.
    return np.round(np.round(table, 6) + np.arange(len(LEVELS)) * 1e-6, 6)


def _score(values: NDArray, bucket: NDArray, table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The level of each value in its bucket's table; beyond the last level it rises towards 1 for ever."""
    # A binary search in every value's own row: five steps cover up to 32 levels.
    padded = np.full((BUCKETS, 32), np.inf)
    padded[:, : len(LEVELS)] = table
    flat, first = padded.ravel(), bucket * 32
    place = first
    for stride in (16, 8, 4, 2, 1):
        place = np.where(flat.take(place + stride) <= values, place + stride, place)
    low, level = flat.take(place), _LEVEL.take(place - first)
    part = np.maximum(values - low, 0.0) / (flat.take(place + 1) - low)
    last = table[:, -1].take(bucket)
    beyond = np.maximum(values - last, 0.0) / (last - table[:, -9].take(bucket) + 1e-3)
    within = level + part * _RISE.take(place - first)
    return np.where(beyond > 0, 1 - (1 - LEVELS[-1]) / (1 + beyond), within)
