"""Intervals by resampling users.

Events of one user resemble each other; an interval that resamples events would be far too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 500
_AT_ONCE = 50  # resamples whose weights are made, or spread over events, at the same time


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval, over n events."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """For people: value and interval."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def as_dict(self, name: str, metric: str) -> dict[str, object]:
        """For programs."""
        return {
            "name": name,
            "metric": metric,
            "value": round(self.value, 6),
            "low": round(self.low, 6),
            "high": round(self.high, 6),
            "n": self.n,
        }


@dataclass(frozen=True)
class Estimate:
    """A metric's value on n events, and its values on the resamples, (R,); those that are undefined are NaN."""

    metric: str
    value: float
    draws_R: NDArray[np.float64]
    n: int

    def interval(self) -> Interval:
        """The 2.5 and 97.5 % quantiles of the resamples on which the metric is defined."""
        draws = self.draws_R[np.isfinite(self.draws_R)]
        if not len(draws):
            return Interval(self.value, float("nan"), float("nan"), self.n)
        low, high = np.quantile(draws, (0.025, 0.975))
        return Interval(self.value, float(low), float(high), self.n)

    def minus(self, other: Estimate) -> Estimate:
        """The paired difference: both were measured on the same resamples."""
        return replace(self, value=self.value - other.value, draws_R=self.draws_R - other.draws_R)


class Resamples:
    """U users drawn with replacement, R times; the same seed draws the same users.

    ``weight_RU``: how often each user was drawn, float32.
    """

    def __init__(self, n_users: int, seed: int = 0, resamples: int = RESAMPLES) -> None:
        rng = np.random.default_rng(seed)
        self.n_users = n_users
        self.weight_RU = np.empty((resamples, n_users), np.float32)
        if n_users:
            share = np.full(n_users, 1 / n_users)
            for start in range(0, resamples, _AT_ONCE):
                part = self.weight_RU[start : start + _AT_ONCE]
                part[:] = rng.multinomial(n_users, share, len(part))

    def sums(self, values_N: NDArray, user_N: NDArray) -> NDArray[np.float64]:
        """The sum over the events of each resample, (R,); events are told to users by their index."""
        a_user = np.bincount(user_N, values_N, self.n_users)
        return (self.weight_RU @ a_user.astype(np.float32)).astype(np.float64)

    def parts(self) -> list[NDArray[np.float32]]:
        """The weights, some resamples at a time, for what must be computed event by event."""
        return [self.weight_RU[start : start + _AT_ONCE] for start in range(0, len(self.weight_RU), _AT_ONCE)]

    def mean(self, metric: str, values_N: NDArray, user_N: NDArray) -> Estimate:
        """A metric that is a mean over events."""
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = self.sums(values_N, user_N) / self.sums(np.ones(len(user_N)), user_N)
        return Estimate(metric, float(np.mean(values_N)), draws, len(user_N))


def mean_interval(loss_N: NDArray, user_N: NDArray, seed: int = 0) -> Interval:
    """The mean over events with an interval by resampling users with replacement.

    Give the difference of two models' losses for a paired interval.
    """
    user, index_N = np.unique(user_N, return_inverse=True)
    return Resamples(len(user), seed).mean("mean", loss_N, index_N).interval()
