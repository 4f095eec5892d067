"""Simple methods that a network must beat, fitted and measured on the same users and events.

Each is a function of a split that gives one prediction a test event, in the order of ``split.test``. What it fits
reads the training users, what it chooses the tuning users; of the test users it sees, for each event, only what the
same user did before (gap and purchase: up to and including the event).
"""

from __future__ import annotations

from collections.abc import Callable

from numpy.typing import NDArray

from models.baselines import (
    adaptive_markov,
    boosted_trees,
    categories,
    gaps,
    logistic_regression,
    markov,
    purchase_rate,
    session_knn,
    unigram,
)
from models.split import Split

Baseline = Callable[[Split], NDArray]

# (N, A): the distribution of event n's action.
NEXT_ACTION: dict[str, Baseline] = {
    "unigram": unigram.next_action,
    "markov_1": markov.next_action(1),
    "markov_2": markov.next_action(2),
    "markov_3": markov.next_action(3),
    "adaptive_markov_2": adaptive_markov.next_action,
    "session_knn": session_knn.next_action,
    "logistic_regression": logistic_regression.next_action,
    "lightgbm": boosted_trees.next_action,
}
# (N,): seconds from event n to the next.
GAP: dict[str, Baseline] = {
    "global_median": gaps.global_median,
    "type_median": gaps.type_median,
    "user_median": gaps.user_median,
}
# (N,): the probability that a purchase follows event n in its session.
PURCHASE: dict[str, Baseline] = {
    "constant": purchase_rate.constant,
    "logistic_regression": logistic_regression.purchase,
    "lightgbm": boosted_trees.purchase,
}
# (N, 20) uint32: category codes of event n, likeliest first, 0 = none.
NEXT_CATEGORY: dict[str, Baseline] = {
    "popularity": categories.popularity,
    "recency": categories.recency,
}
