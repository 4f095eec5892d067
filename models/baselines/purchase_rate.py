"""The share of events that a purchase follows in their session: the same for all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.split import Split, scored_events
from models.training_log import targets_of


def constant(split: Split) -> NDArray[np.float64]:
    """The training users' share for every test event, (N,)."""
    known = scored_events(split.fit, split.purchase_code).purchase
    follows = targets_of(split.fit, split.purchase_code).purchase[known]
    return np.full(len(split.test["row"]), smoothed_rate(int(follows.sum()), len(follows)))


def smoothed_rate(positives: int, n: int) -> float:
    """Half an event of either kind is added, so that neither is impossible.

    Source: the Jeffreys prior of a share.
    """
    return (positives + 0.5) / (n + 1)
