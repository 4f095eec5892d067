"""How well labelled users are told apart, one score a user: the supervised head beside learners on a user's totals.

Scored is a user after the last of its events. Learners see the same users and the same numbers of them (counts, gaps,
prices, extras), and like the head no hour, weekday or date.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from models.columns import Columns
from models.errors import TrainingError
from models.evaluation import measures
from models.evaluation.comparison import Figures
from models.evaluation.intervals import Estimate, Resamples
from models.labelled import (
    LEAST_LABELS,
    UNKNOWN,
    Labelled,
    fit_fake_order,
    labelled_part,
    log_odds_of,
)
from models.training import fit_features
from models.training_log import TrainingLog

__all__ = ["BASELINES", "HEAD", "CrossFitted", "UserScores", "add_fake_order", "cross_fitted_fake_order"]

HEAD = "fake_order"
_TREES: dict[str, object] = {
    "objective": "binary",
    "num_leaves": 31,
    "learning_rate": 0.1,
    "min_data_in_leaf": 20,
    "seed": 1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
_ROUNDS = 100


def user_numbers(columns: Columns) -> NDArray[np.float64]:
    """A row a user of what all its events come to; NaN where nothing is known."""
    row, n_actions = columns["row"], columns["action_life"].shape[1]
    users = int(row[-1]) + 1 if len(row) else 0
    count = np.bincount(row, minlength=users).astype(np.float64)
    action = columns["action"]
    own = np.stack([np.bincount(row[action == code], minlength=users) for code in range(n_actions)], axis=1)
    gap = np.where(columns["gap_ms"] < 0, np.nan, columns["gap_ms"] * 1e-3)
    start = np.flatnonzero(columns["wave"] == 0)
    last = np.append(start[1:], len(row)) - 1
    parts = [
        np.log1p(count)[:, None],
        own / np.maximum(count, 1)[:, None],
        np.log1p(own),
        np.log1p(columns["session_index"][last])[:, None],
        _moments(np.log1p(gap), row, users),
        _moments(np.where(np.isnan(gap), np.nan, gap < 1), row, users)[:, :1],
        _moments(columns["log_price"], row, users),
        *(
            _moments(columns[name].astype(np.float64), row, users)[:, :1]
            for name in ("repeat_item", "repeat_category")
        ),
    ]
    for extra in np.arcsinh(columns["extra"].astype(np.float64)).T:
        parts.append(_moments(extra, row, users))
        parts += [
            _moments(np.where(action == code, extra, np.nan), row, users)[:, :2] for code in range(n_actions)
        ]
    return np.concatenate(parts, axis=1)


def _moments(value_N: NDArray, row: NDArray, users: int) -> NDArray[np.float64]:
    """Mean, spread, greatest and least of each user, (U, 4)."""
    known = ~np.isnan(value_N)
    value, user = value_N[known].astype(np.float64), row[known]
    count = np.bincount(user, minlength=users)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(user, value, users) / count
        spread = np.sqrt(np.maximum(np.bincount(user, value * value, users) / count - mean * mean, 0))
    high, low = np.full(users, -np.inf), np.full(users, np.inf)
    np.maximum.at(high, user, value)
    np.minimum.at(low, user, value)
    held = count > 0
    return np.stack([mean, spread, np.where(held, high, np.nan), np.where(held, low, np.nan)], axis=1)


def lightgbm_said(fit: Labelled, test: Columns) -> NDArray[np.float64]:
    """The probability of each test user by boosted trees with usual settings."""
    data = lightgbm.Dataset(user_numbers(fit.columns), _label_a_user(fit), params=_TREES)
    return np.asarray(lightgbm.train(_TREES, data, _ROUNDS).predict(user_numbers(test), num_threads=1))


def logistic_said(fit: Labelled, test: Columns) -> NDArray[np.float64]:
    """The probability of each test user by logistic regression on scaled numbers, with flags for the missing ones."""
    x, z = user_numbers(fit.columns), user_numbers(test)
    known = ~np.isnan(x)
    held = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, x, 0).sum(axis=0) / held
    spread = np.sqrt(np.where(known, (x - mean) ** 2, 0).sum(axis=0) / held)
    spread[spread < 1e-6] = 1.0

    def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
        missing = np.isnan(values)
        return np.concatenate(
            [np.clip(np.where(missing, 0, (values - mean) / spread), -8, 8), missing], axis=1
        )

    learner = LogisticRegression(C=0.3, max_iter=2000).fit(scaled(x), _label_a_user(fit))
    return np.asarray(learner.predict_proba(scaled(z))[:, 1], np.float64)


BASELINES: dict[str, Callable[[Labelled, Columns], NDArray[np.float64]]] = {
    "logistic_regression": logistic_said,
    "lightgbm": lightgbm_said,
}


def _label_a_user(part: Labelled) -> NDArray[np.bool_]:
    return part.label_N[part.columns["wave"] == 0]


@dataclass(frozen=True)
class UserScores:
    """One a user of what a method said: ``score`` ranks, ``probability`` is what is held against the labels."""

    score: NDArray[np.float64]
    probability: NDArray[np.float64] | None


def estimates_of(said: UserScores, label_U: NDArray[np.bool_], resamples: Resamples) -> list[Estimate]:
    """Areas under the ROC and precision-recall curves; calibration error and log-loss of a probability."""
    user = np.arange(len(label_U))
    found = list(measures.areas(said.score, label_U, user, resamples))
    if said.probability is not None:
        p = said.probability
        found.append(measures.calibration_error("ece", p, label_U, user, resamples))
        found.append(resamples.mean("log_loss", measures.nats(np.where(label_U, p, 1 - p)), user))
    return found


def add_fake_order(
    figures: Figures, own: UserScores, others: dict[str, NDArray[np.float64]], label_U: NDArray[np.bool_]
) -> None:
    """Measure the head and the learners on the same users."""
    resamples = Resamples(len(label_U))
    figures.add(HEAD, figures.model, estimates_of(own, label_U, resamples))
    for name, said in others.items():
        figures.add(HEAD, name, estimates_of(UserScores(said, said), label_U, resamples))


def fold_of_users(user_ids: Sequence[str], folds: int) -> NDArray[np.int64]:
    """Users dealt to folds in the order of their hashes: equally large, whatever the order of the log."""
    hashes = [(crc32(user.encode()) // 100, user) for user in user_ids]
    rank = np.empty(len(hashes), np.int64)
    rank[sorted(range(len(hashes)), key=hashes.__getitem__)] = np.arange(len(hashes))
    return rank % folds


@dataclass(frozen=True)
class CrossFitted:
    """Of U labelled users what was said by methods fitted on the users of the other folds."""

    label_U: NDArray[np.bool_]
    own: UserScores
    others: dict[str, NDArray[np.float64]]


def cross_fitted_fake_order(
    log: TrainingLog,
    folds: int,
    *,
    seed: int = 1,
    least_labels: int = LEAST_LABELS,
    with_baselines: bool = True,
    tell: Callable[[str], None] | None = None,
) -> CrossFitted:
    """Fit the head, its scaling and its calibration on all folds of users but one, and score that one; every fold once.

    Raises:
        TrainingError: too few users are labelled either way.
    """
    labelled = log.labels != UNKNOWN
    positive, negative = int((log.labels == 1).sum()), int((log.labels == 0).sum())
    if min(positive, negative) < 2 * folds:
        raise TrainingError(
            f"{folds} folds need at least {2 * folds} users of either label; the log has {positive} positive and "
            f"{negative} negative ones. Give fewer --folds or more labels."
        )
    users = len(log.user_ids)
    # Either label is dealt out for itself, so that no fold lacks one.
    fold = np.full(users, -1)
    for kind in (0, 1):
        own = np.flatnonzero(log.labels == kind)
        fold[own] = fold_of_users([log.user_ids[user] for user in own], folds)
    score, probability = np.full(users, np.nan), np.full(users, np.nan)
    others = {name: np.full(users, np.nan) for name in (BASELINES if with_baselines else ())}
    nobody = labelled_part(log, np.zeros(users, np.bool_))
    for number in range(folds):
        if tell is not None:
            tell(f"fold {number + 1} of {folds}")
        held = labelled & (fold == number)
        fit, test = labelled_part(log, labelled & ~held), labelled_part(log, held)
        # Users whose events were all dropped by the fold have nothing to be scored by.
        held = np.isin(np.arange(users), log.columns["row"]) & held
        spec = fit_features(log, fit.columns)
        fitted = fit_fake_order(fit, nobody, spec, seed=seed + number, least_labels=least_labels)
        if fitted is None:
            raise TrainingError(
                "The labelled users of a fold have too few events. Give fewer --folds or more labels."
            )
        log_odds = log_odds_of(fitted.head, test, spec)[test.last()].astype(np.float64)
        score[held] = 1 / (1 + np.exp(-log_odds))
        if (calibration := fitted.calibration) is not None:
            probability[held] = 1 / (1 + np.exp(-(calibration.slope * log_odds + calibration.intercept)))
        for name, said in others.items():
            said[held] = BASELINES[name](fit, test.columns)
    at = np.flatnonzero(~np.isnan(score))
    calibrated = not np.isnan(probability[at]).any()
    return CrossFitted(
        label_U=log.labels[at] == 1,
        own=UserScores(score[at], probability[at] if calibrated else None),
        others={name: said[at] for name, said in others.items()},
    )
