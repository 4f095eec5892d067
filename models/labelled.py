"""Fitting the supervised head on labelled users, and giving its score the meaning of a probability.

Every event of a labelled user is an example, weighed so that each user counts once: the score has to be right after
any number of events. Trees have fixed sizes, so no user is spent on choosing them. The calibration sees scores of
users that the trees were not fitted on: the tuning users', and the others' from trees of the remaining folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
import torch
from numpy.typing import NDArray

from models.columns import Columns, histories
from models.fake_order import LEAVES, Calibration, FakeOrder
from models.features import FeatureSpec, inputs
from models.split import until
from models.training_log import TrainingLog

TREES, SEEDS = 100, 3
#: Labelled users of the rarer kind from which on a probability is given.
LEAST_LABELS = 20
#: Users of each kind without whom there is nothing to learn.
FEWEST = 2
FOLDS = 4
UNKNOWN = -1
_PARAMETERS: dict[str, object] = {
    "objective": "binary",
    "num_leaves": LEAVES,
    "learning_rate": 0.07,
    "min_data_in_leaf": 10,
    "feature_fraction": 0.4,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "max_bin": 255,
    "use_missing": False,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


@dataclass(frozen=True)
class Labelled:
    """Events of labelled users, each user's contiguous; ``label_N`` repeats the user's label at each event."""

    columns: Columns
    label_N: NDArray[np.bool_]

    @property
    def users(self) -> tuple[int, int]:
        """How many are labelled negative and positive."""
        own = self.label_N[self.columns["wave"] == 0]
        return int((~own).sum()), int(own.sum())

    def part(self, events: NDArray[np.bool_]) -> Labelled:
        """Those of some users, whose events a mask names."""
        return Labelled(histories(self.columns, np.flatnonzero(events)), self.label_N[events])

    def weight(self) -> NDArray[np.float64]:
        """1 over the events of the event's user."""
        weight: NDArray[np.float64] = 1.0 / np.bincount(self.columns["row"])[self.columns["row"]]
        return weight

    def last(self) -> NDArray[np.int64]:
        """The last event of each user."""
        ends = np.append(np.flatnonzero(self.columns["wave"] == 0)[1:], len(self.columns["row"]))
        return np.asarray(ends - 1, np.int64)


def labelled_part(log: TrainingLog, users: NDArray[np.bool_], until_ms: int | None = None) -> Labelled:
    """The labelled ones of some users (a mask, one a row of the log), before a moment if one is given."""
    known = users & (log.labels != UNKNOWN)
    # The label goes along as a column while users are cut out, and is taken away before anything reads columns.
    at = np.flatnonzero(known[log.columns["row"]])
    columns = histories({**log.columns, "label": log.labels[log.columns["row"]]}, at)
    if until_ms is not None:
        columns = until(columns, until_ms)
    label = columns.pop("label")
    return Labelled(columns, label > 0)


@dataclass(frozen=True)
class FittedFakeOrder:
    """A head, its calibration if there were labels enough, and what to keep of how it came about."""

    head: FakeOrder
    calibration: Calibration | None
    described: dict[str, Any]


def fit_fake_order(
    fit: Labelled,
    tune: Labelled,
    spec: FeatureSpec,
    *,
    seed: int = 1,
    least_labels: int = LEAST_LABELS,
) -> FittedFakeOrder | None:
    """Fit the head; None if the users to fit on have fewer than two of either kind.

    Args:
        fit: whom trees are fitted on.
        tune: other users, for the calibration alone; may be empty.
        spec: vocabulary and scaling of the model.
        seed: of the trees and of the folds.
        least_labels: labelled users of the rarer kind, fit and tune together, that a probability needs.
    """
    if min(fit.users) < FEWEST:
        return None
    statistics = _blank(spec, fit.columns)
    z_NF = _inputs(statistics, fit, spec)
    head = _boosted(statistics, z_NF, fit, seed)
    rng = np.random.default_rng(seed)
    fold = (rng.permutation(int(fit.columns["row"][-1]) + 1) % FOLDS)[fit.columns["row"]]
    log_odds, label, weight = [], [], []
    for number in range(FOLDS):
        others, held = fold != number, fold == number
        rest = fit.part(others)
        if min(rest.users) >= FEWEST and held.any():
            made = _boosted(statistics, z_NF[others], rest, seed, seeds=1)
            log_odds.append(_log_odds(made, z_NF[held]))
            label.append(fit.label_N[held])
            weight.append(fit.weight()[held])
    if len(tune.label_N):
        log_odds.append(_log_odds(head, _inputs(head, tune, spec)))
        label.append(tune.label_N)
        weight.append(tune.weight())
    negative, positive = (a + b for a, b in zip(fit.users, tune.users, strict=True))
    enough = bool(log_odds) and min(negative, positive) >= least_labels
    calibration = None
    if enough:
        calibration = platt(np.concatenate(log_odds), np.concatenate(label), np.concatenate(weight))
    described: dict[str, Any] = {
        "method": "sigmoid of slope x log-odds + intercept",
        "slope": None if calibration is None else calibration.slope,
        "intercept": None if calibration is None else calibration.intercept,
        "labelled_users": {"positive": positive, "negative": negative},
        "least_labels": least_labels,
    }
    return FittedFakeOrder(head, calibration, described)


def log_odds_of(head: FakeOrder, part: Labelled, spec: FeatureSpec) -> NDArray[np.float32]:
    """The head's log-odds after every event of some users, from the first one on."""
    return _log_odds(head, _inputs(head, part, spec))


def platt(log_odds_N: NDArray, label_N: NDArray[np.bool_], weight_N: NDArray) -> Calibration:
    """Slope (at least 0.05) and intercept of least weighted log-loss, by Newton's method.

    Targets are drawn in by one user of either kind, as Platt does, so that separable users do not make certainty.
    """
    positive, negative = float(weight_N[label_N].sum()), float(weight_N[~label_N].sum())
    target_N = np.where(label_N, (positive + 1) / (positive + 2), 1 / (negative + 2))
    x_N2 = np.stack([log_odds_N.astype(np.float64), np.ones(len(log_odds_N))], axis=1)
    theta = np.array([1.0, 0.0])
    for _ in range(50):
        p_N = 1 / (1 + np.exp(-np.clip(x_N2 @ theta, -30, 30)))
        gradient = x_N2.T @ (weight_N * (p_N - target_N))
        hessian = (x_N2 * (weight_N * np.maximum(p_N * (1 - p_N), 1e-9))[:, None]).T @ x_N2
        step = np.linalg.solve(hessian + 1e-6 * np.eye(2), gradient)
        theta -= np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-9:
            break
    return Calibration(round(max(0.05, float(theta[0])), 6), round(float(theta[1]), 6))


def _blank(spec: FeatureSpec, columns: Columns) -> FakeOrder:
    head = FakeOrder(len(spec.actions), len(spec.extras), TREES * SEEDS)
    head.statistics.begin_from(columns)
    return head


def _inputs(head: FakeOrder, part: Labelled, spec: FeatureSpec) -> NDArray[np.float32]:
    made: NDArray[np.float32] = head.inputs_of_users(inputs(part.columns, spec), part.columns).numpy()
    return made


def _log_odds(head: FakeOrder, z_NF: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = [head.forest(torch.from_numpy(z_NF[at : at + 1024])).numpy() for at in range(0, len(z_NF), 1024)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _boosted(
    blank: FakeOrder, z_NF: NDArray[np.float32], part: Labelled, seed: int, seeds: int = SEEDS
) -> FakeOrder:
    """A head with the mean of some boosted forests, whose draws of numbers and events differ."""
    n_actions, n_extras = blank.statistics.n_actions, blank.statistics.n_extras
    head = FakeOrder(n_actions, n_extras, TREES * seeds)
    head.statistics.load_state_dict(blank.statistics.state_dict())
    # So that least numbers of examples and penalties mean events, as if each counted 1 on average.
    weight = part.weight()
    weight /= weight.mean()
    trees: list[dict[str, Any]] = []
    for number in range(seeds):
        parameters = {**_PARAMETERS, "seed": seed * SEEDS + number}
        data = lightgbm.Dataset(z_NF, part.label_N.astype(np.float32), weight=weight, params=parameters)
        trees += lightgbm.train(parameters, data, TREES).dump_model()["tree_info"]
    head.forest.fill(trees)
    head.forest.value_TL.copy_(torch.round(head.forest.value_TL * (65_536.0 / seeds)) / 65_536.0)
    return head
