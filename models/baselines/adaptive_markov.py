"""A chain that learns each user's own habits while the user acts.

The chain of order 2 is the prior of the user's own counts so far: first of all the user's actions, that of those after
the same action, that of those after the same two. The masses, how many events a prior is worth, are tuned on the
tuning users.

Source: interpolated additive smoothing (MacKay & Peto, 1995), the user as the last of the contexts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.baselines.markov import Markov, contexts, mean_loss, smoothed
from models.columns import Columns
from models.split import Split

_ORDERS = (0, 1, 2)
# The last one is as good as leaving the user's counts of an order out.
_MASSES = (4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 256.0, 512.0, 2048.0, 1e9)
_FIRST_MASS = 64.0
_ROUNDS = 3


def next_action(split: Split) -> NDArray[np.float64]:
    """Fitted and tuned on a split, for every test event, (N, A)."""
    chain = Markov.fit(split.fit, split.tune, split.n_actions, order=2)
    scored = np.flatnonzero(split.tune["wave"] > 0)
    prior = chain.probabilities(split.tune)[scored]
    own = [own_counts(split.tune, split.n_actions, order)[scored] for order in _ORDERS]
    masses = _tuned(prior, own, split.tune["action"][scored])
    own = [own_counts(split.test, split.n_actions, order) for order in _ORDERS]
    return _mixed(chain.probabilities(split.test), own, masses)


def own_counts(columns: Columns, n_actions: int, order: int) -> NDArray[np.float64]:
    """How often the user did each action earlier, after the same last ``order`` actions, (N, A)."""
    n = len(columns["row"])
    # Events of one user and context side by side, in their order.
    order_N = np.lexsort((np.arange(n), contexts(columns, n_actions, order), columns["row"]))
    key = np.stack([columns["row"], contexts(columns, n_actions, order)])[:, order_N]
    happened = np.zeros((n, n_actions))
    happened[np.arange(n), columns["action"][order_N]] = 1
    earlier = np.cumsum(happened, axis=0) - happened
    begins = np.ones(n, np.bool_)
    begins[1:] = (key[:, 1:] != key[:, :-1]).any(axis=0)
    first = np.flatnonzero(begins)
    counts = np.empty_like(earlier)
    counts[order_N] = earlier - earlier[first][np.cumsum(begins) - 1]
    return counts


def _mixed(prior_NA: NDArray, own: list[NDArray], masses: list[float]) -> NDArray[np.float64]:
    p_NA = prior_NA
    for count_NA, mass in zip(own, masses, strict=True):
        p_NA = smoothed(count_NA, p_NA, mass)
    return p_NA


def _tuned(prior_NA: NDArray, own: list[NDArray], action_N: NDArray) -> list[float]:
    """The masses of least loss, one after another, three times round."""
    masses = [_FIRST_MASS] * len(own)
    if not len(action_N):
        return masses
    for _ in range(_ROUNDS):
        for place in range(len(own)):
            tried = [[*masses[:place], mass, *masses[place + 1 :]] for mass in _MASSES]
            losses = [mean_loss(_mixed(prior_NA, own, masses), action_N) for masses in tried]
            masses = tried[int(np.argmin(losses))]
    return masses
