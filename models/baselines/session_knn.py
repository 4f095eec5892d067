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
_SHARPNESS = 16.0
# Neighbours, and how many votes the shares are worth; the first are taken when no tuning user can choose.
_NEIGHBOURS = (50, 5, 200, 1000)
_MASSES = (2.0, 0.5, 8.0, 32.0)
# Compared are sessions with the same last action, the most frequent beginnings first: a bound on time.
_MOST_PREFIXES = 2_000
_ROWS_AT_ONCE = 256
# Similarities are whole billionths: rounding must not decide who is the nearer of two equally near.
_UNITS = 1e9


@dataclass(frozen=True)
class _Prefixes:
    """Distinct beginnings of training sessions, frequent ones first: unit vectors and what followed."""

    newest_P: NDArray[np.uint8]
    vector_PD: NDArray[np.float64]
    count_PA: NDArray[np.float64]

    def votes(self, prefix_QL: NDArray[np.uint8]) -> dict[int, NDArray[np.float64]]:
        """Similarity-weighted counts of what followed, (Q, A), by number of neighbours."""
        n_actions = self.count_PA.shape[1]
        votes = {k: np.zeros((len(prefix_QL), n_actions)) for k in _NEIGHBOURS}
        for newest in np.unique(prefix_QL[:, 0]):
            among = np.flatnonzero(self.newest_P == newest)[:_MOST_PREFIXES]
            asking = np.flatnonzero(prefix_QL[:, 0] == newest)
            for start in range(0, len(asking) if len(among) else 0, _ROWS_AT_ONCE):
                rows = asking[start : start + _ROWS_AT_ONCE]
                similarity = np.rint(_vectors(prefix_QL[rows], n_actions) @ self.vector_PD[among].T * _UNITS)
                # Of equally near ones the more frequent: their places are in that order.
                key = similarity * _MOST_PREFIXES - np.arange(len(among))
                # The nearest one has one vote a session, however near it is.
                weight = (similarity / similarity.max(axis=1, keepdims=True)) ** _SHARPNESS
                ranked = [len(among) - min(k, len(among)) for k in _NEIGHBOURS]
                least = np.partition(key, sorted(set(ranked)), axis=1)[:, ranked]
                for place, k in enumerate(_NEIGHBOURS):
                    near = key >= least[:, place : place + 1]
                    votes[k][rows] = (weight * near) @ self.count_PA[among]
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
    kept = np.argsort(-times, kind="stable")
    count_PA = count.reshape(-1, n_actions)[kept].astype(np.float64)
    known = _Prefixes(prefix[kept, 0], _vectors(prefix[kept], n_actions), count_PA)

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
    return {k: votes[at.ravel()] for k, votes in known.votes(prefix).items()}


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
