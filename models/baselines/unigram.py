"""The share of each action, whatever came before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.columns import Columns
from models.split import Split


def probabilities(columns: Columns, n_actions: int) -> NDArray[np.float64]:
    """Shares of the actions among all events, one added to each count so that none is impossible."""
    count = np.bincount(columns["action"], minlength=n_actions) + 1.0
    return count / count.sum()


def losses(columns: Columns, share_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats of each event's action."""
    return -np.log(share_A[columns["action"]])


def next_action(split: Split) -> NDArray[np.float64]:
    """The training users' shares for every test event, (N, A)."""
    share_A = probabilities(split.fit, split.n_actions)
    return np.tile(share_A, (len(split.test["row"]), 1))
