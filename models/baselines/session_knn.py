"""Nearest neighbours among sessions: what happened next where a session had begun alike.

The actions of a session so far are a vector: each action's weight falls with its age, and the last three have places
of their own. The next actions of the nearest training sessions vote with a power of their cosine similarity; sessions
that began in the same way are one neighbour with all their votes. The training users' shares are added, worth a few
votes.

Source: Jannach & Ludewig (2017), session kNN; weights by age after Ludewig & Jannach (2018), V-SKNN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines import unigram
from models.baselines.markov import mean_loss, smoothed
from models.columns import Columns
from models.split import Split, at_lag

LENGTH = 8
_PLACES = 3
# Both chosen on tuning users of a public log: near neighbours must count far more than others.
_PLACE_WEIGHT = 2.0
_SHARPNESS = 32.0
# Neighbours, and how many votes the shares are worth; the first are taken when no tuning user can choose.
_NEIGHBOURS = (50, 5, 200)
_MASSES = (2.0, 0.5, 8.0, 32.0)
# The most frequent beginnings of sessions that are compared with: a bound on time, not reached by short logs.
_MOST_PREFIXES = 20_000
_ROWS_AT_ONCE = 256
# Similarities are whole billionths: rounding must not decide who is the nearer of two equally near.
_UNITS = 1e9


@dataclass(frozen=True)
class _Prefixes:
    """Distinct beginnings of training sessions, frequent ones first: unit vectors and what followed."""

    vector_PD: NDArray[np.float64]
    count_PA: NDArray[np.float64]

    def votes(self, vector_QD: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
        """Similarity-weighted counts of what followed, (Q, A), by number of neighbours."""
        most = [min(k, len(self.vector_PD)) for k in _NEIGHBOURS]
        votes = {k: np.zeros((len(vector_QD), self.count_PA.shape[1])) for k in _NEIGHBOURS}
        for start in range(0, len(vector_QD), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            similarity = np.rint(vector_QD[rows] @ self.vector_PD.T * _UNITS).astype(np.int64)
            # Of equally near ones the more frequent: their places are in that order.
            key = similarity * _MOST_PREFIXES - np.arange(len(self.vector_PD))
            nearest = np.argpartition(-key, max(most) - 1, axis=1)[:, : max(most)]
            order = np.argsort(-np.take_along_axis(key, nearest, axis=1), axis=1)
            nearest = np.take_along_axis(nearest, order, axis=1)
            weight = (np.take_along_axis(similarity, nearest, axis=1) / _UNITS) ** _SHARPNESS
            for k, neighbours in zip(_NEIGHBOURS, most, strict=True):
                voters = self.count_PA[nearest[:, :neighbours]]
                votes[k][rows] = np.einsum("qk,qka->qa", weight[:, :neighbours], voters)
        return votes


def next_action(split: Split) -> NDArray[np.float64]:
    """The distribution of each test event's action, (N, A)."""
    n_actions = split.n_actions
    share_A = unigram.probabilities(split.fit, n_actions)
    fit_at = np.flatnonzero(split.fit["wave"] > 0)
    if not len(fit_at):
        return np.tile(share_A, (len(split.test["row"]), 1))
    prefix, at, times = np.unique(
        _prefixes(split.fit, n_actions)[fit_at], axis=0, return_inverse=True, return_counts=True
    )
    count = np.bincount(
        at.ravel() * n_actions + split.fit["action"][fit_at], minlength=len(prefix) * n_actions
    )
    kept = np.argsort(-times, kind="stable")[:_MOST_PREFIXES]
    known = _Prefixes(
        _vectors(prefix[kept], n_actions), count.reshape(-1, n_actions)[kept].astype(np.float64)
    )

    scored = np.flatnonzero(split.tune["wave"] > 0)
    tune = _votes(known, split.tune, n_actions)
    tried = [(k, mass) for k in _NEIGHBOURS for mass in _MASSES]
    losses = [
        mean_loss(smoothed(tune[k], share_A, mass)[scored], split.tune["action"][scored]) for k, mass in tried
    ]
    k, mass = tried[int(np.argmin(losses))]
    return smoothed(_votes(known, split.test, n_actions)[k], share_A, mass)


def _votes(known: _Prefixes, columns: Columns, n_actions: int) -> dict[int, NDArray[np.float64]]:
    """For each event of the columns, (N, A); equal beginnings are looked up once."""
    prefix, at = np.unique(_prefixes(columns, n_actions), axis=0, return_inverse=True)
    return {k: votes[at.ravel()] for k, votes in known.votes(_vectors(prefix, n_actions)).items()}


def _prefixes(columns: Columns, n_actions: int) -> NDArray[np.uint8]:
    """The last actions of the session before each event, (N, 8), newest first; ``n_actions`` = none.

    Whether an event begins a session of its own is not known before it.
    """
    starts = columns["new_session"] | (columns["wave"] == 0)
    session = np.cumsum(starts)
    newest = at_lag(session, columns, 1, -1)
    lags = []
    for lag in range(1, LENGTH + 1):
        inside = at_lag(session, columns, lag, -2) == newest
        lags.append(
            np.where(inside, at_lag(columns["action"].astype(np.int64), columns, lag, n_actions), n_actions)
        )
    return np.stack(lags, axis=1).astype(np.uint8)


def _vectors(prefix_PL: NDArray[np.uint8], n_actions: int) -> NDArray[np.float64]:
    """Unit vectors: weight by age an action, then the last three actions in their places."""
    weight_L = 1 - np.arange(LENGTH) / LENGTH
    places = n_actions + 1
    vector = np.zeros((len(prefix_PL), places * (1 + _PLACES)), np.float64)
    rank = np.arange(len(prefix_PL))
    for lag in range(LENGTH):
        np.add.at(vector, (rank, prefix_PL[:, lag]), weight_L[lag])
        if lag < _PLACES:
            vector[rank, places * (1 + lag) + prefix_PL[:, lag]] = _PLACE_WEIGHT * weight_L[lag]
    # Never zero: where nothing happened yet, "none" has the weight.
    return vector / np.linalg.norm(vector, axis=1, keepdims=True)
