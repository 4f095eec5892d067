"""What other learners say of the training users' events, as soft targets for the network.

Trees and logistic regression see the same events as counts and lags. Each training user's predictions come from
learners that were fitted on other training users, so they are as honest as for a stranger. Served is the network
alone: a forest costs a user's event far more than a step of the network, a target costs nothing.

Source: distillation after Hinton, Vinyals & Dean (2015); out-of-fold predictions as in stacking (Wolpert 1992).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines import boosted_trees, logistic_regression
from models.columns import Columns, histories
from models.split import Split

FOLDS = 4
# Events times actions that one learner is fitted on; further users are left out, and its time stays bounded: 63 s of
# one core for all folds of 53,000 events of 18 actions, 20 s for 50,000 of 11.
MOST_ANSWERS = 600_000
_TINY = 1e-7


@dataclass(frozen=True)
class Teaching:
    """The teachers' mean, one row an event of the training users and of the tuning users.

    ``action_NA``: of the event's own action, seen from before it, zeros for a user's first. ``purchase_N``: that one
    follows in its session. ``tuning_action_NA``: the former of the tuning users.
    """

    action_NA: NDArray[np.float32]
    purchase_N: NDArray[np.float32]
    tuning_action_NA: NDArray[np.float32]


def teach(split: Split, seed: int) -> Teaching:
    """Fit the teachers in four folds of the training users; the tuning users choose penalties and when to stop."""
    fit, tune = split.fit, split.tune
    n, n_actions = len(fit["row"]), split.n_actions
    users = int(fit["row"].max()) + 1
    rng = np.random.default_rng(seed)
    fold = (rng.permutation(users) % FOLDS)[fit["row"]]
    action, purchase = np.zeros((n, n_actions), np.float32), np.zeros(n, np.float32)
    tuning = np.zeros((len(tune["row"]), n_actions), np.float32)
    for number in range(FOLDS):
        held = np.flatnonzero(fold == number)
        others = _at_most(histories(fit, np.flatnonzero(fold != number)), MOST_ANSWERS // n_actions, rng)
        # The tuning users come along as further users to predict.
        asked = Split(split.log, others, tune, _joined(histories(fit, held), tune))
        said = (boosted_trees.next_action(asked) + logistic_regression.next_action(asked)) / 2
        action[held], tuning_said = said[: len(held)], said[len(held) :]
        tuning += (tuning_said / FOLDS).astype(np.float32)
        if split.purchase_code >= 0:
            bought = (boosted_trees.purchase(asked) + logistic_regression.purchase(asked)) / 2
            purchase[held] = bought[: len(held)]
    action[fit["wave"] == 0] = 0.0
    return Teaching(action, purchase, tuning)


def best_mixture(network_N: NDArray, teachers_N: NDArray) -> tuple[float, float]:
    """The teachers' weight in the mixture of both with the least log-loss, and that loss, nats an event.

    Args:
        network_N: the probability of what came.
        teachers_N: the same of the teachers.
    """
    weights = np.linspace(0, 1, 21)
    losses = [float(-np.log(np.maximum((1 - w) * network_N + w * teachers_N, _TINY)).mean()) for w in weights]
    best = int(np.argmin(losses))
    return float(weights[best]), losses[best]


def _at_most(columns: Columns, events: int, rng: np.random.Generator) -> Columns:
    if len(columns["row"]) <= events:
        return columns
    order = rng.permutation(int(columns["row"].max()) + 1)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.cumsum(np.bincount(columns["row"])[order])
    return histories(columns, np.flatnonzero(rank[columns["row"]] <= events))


def _joined(first: Columns, second: Columns) -> Columns:
    both = {name: np.concatenate([first[name], second[name]]) for name in first}
    users = int(first["row"].max()) + 1 if len(first["row"]) else 0
    both["row"][len(first["row"]) :] += users
    return both
