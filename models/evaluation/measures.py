"""The metrics: each a function of aligned arrays, with its values on the resamples.

``user_N`` tells which of the resampled users each event belongs to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.evaluation.intervals import Estimate, Resamples

BINS = 15
_FOLDS = 5
# Bounds the loss of one event at 20.7 nats, for methods that call something impossible.
_LEAST_PROBABILITY = 1e-9

Labels = NDArray[np.bool_]
Users = NDArray[np.integer]


def next_action(p_NA: NDArray, action_N: NDArray, user_N: Users, resamples: Resamples) -> list[Estimate]:
    """Log-loss, accuracy of the first and of the first three, macro-F1 and two calibration errors.

    ``ece`` is of the likeliest action; ``ece_classwise`` is the mean over the actions that occur. Of equally likely
    actions the first of the vocabulary ranks first.
    """
    n = len(action_N)
    of_action_N = p_NA[np.arange(n), action_N]
    better = (p_NA > of_action_N[:, None]).sum(axis=1)
    tied_before = (p_NA == of_action_N[:, None]) & (np.arange(p_NA.shape[1]) < action_N[:, None])
    rank_N = better + tied_before.sum(axis=1)
    top_N = p_NA.argmax(axis=1)
    occurring = np.unique(action_N)
    a_class = [
        calibration_error("ece_classwise", p_NA[:, action], action_N == action, user_N, resamples)
        for action in occurring
    ]
    return [
        resamples.mean("log_loss", nats(of_action_N), user_N),
        resamples.mean("accuracy", rank_N < 1, user_N),
        resamples.mean("top_3_accuracy", rank_N < 3, user_N),
        macro_f1(top_N, action_N, user_N, resamples),
        calibration_error("ece", p_NA.max(axis=1), top_N == action_N, user_N, resamples),
        Estimate(
            "ece_classwise",
            float(np.mean([one.value for one in a_class])),
            np.mean([one.draws_R for one in a_class], axis=0),
            n,
        ),
    ]


def purchase(
    p_N: NDArray, label_N: Labels, threshold_N: NDArray, user_N: Users, resamples: Resamples
) -> list[Estimate]:
    """Log-loss, areas under the ROC and precision-recall curves, calibration, precision and recall.

    ``threshold_N``: from which probability on an event counts as predicted; fitted on other users than the event's.
    """
    said = p_N >= threshold_N
    hits = resamples.sums(said & label_N, user_N)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_R = hits / resamples.sums(said, user_N)
        recall_R = hits / resamples.sums(label_N, user_N)
        precision = np.float64((said & label_N).sum()) / said.sum()
    n = len(label_N)
    return [
        resamples.mean("log_loss", nats(np.where(label_N, p_N, 1 - p_N)), user_N),
        *areas(p_N, label_N, user_N, resamples),
        calibration_error("ece", p_N, label_N, user_N, resamples),
        Estimate("precision", float(precision), precision_R, n),
        Estimate("recall", float((said & label_N).sum() / label_N.sum()), recall_R, n),
    ]


def gap(predicted_s_N: NDArray, actual_s_N: NDArray, user_N: Users, resamples: Resamples) -> list[Estimate]:
    """Mean and median absolute error of the predicted medians, in the unit of the arguments."""
    error_N = np.abs(predicted_s_N.astype(np.float64) - actual_s_N)
    return [
        resamples.mean("mae", error_N, user_N),
        median("median_absolute_error", error_N, user_N, resamples),
    ]


def next_category(code_NK: NDArray, code_N: NDArray, user_N: Users, resamples: Resamples) -> list[Estimate]:
    """How often the category is among the first 20 and 10, and the mean of 1 / its rank (0 if it is not among 20)."""
    hit_NK = code_NK[:, :20] == code_N[:, None]
    found_N, rank_N = hit_NK.any(axis=1), hit_NK.argmax(axis=1) + 1
    return [
        resamples.mean("recall_at_20", found_N, user_N),
        resamples.mean("recall_at_10", found_N & (rank_N <= 10), user_N),
        resamples.mean("mrr", found_N / rank_N, user_N),
    ]


def nats(p_N: NDArray) -> NDArray[np.float64]:
    """The loss of calling what happened this likely."""
    return -np.log(np.maximum(p_N.astype(np.float64), _LEAST_PROBABILITY))


def macro_f1(predicted_N: NDArray, actual_N: NDArray, user_N: Users, resamples: Resamples) -> Estimate:
    """The mean F1 of the actions that occur."""
    classes = np.unique(actual_N)
    draws, values = [], []
    for action in classes:
        said, was = predicted_N == action, actual_N == action
        values.append(2 * (said & was).sum() / (said.sum() + was.sum()))
        size_R = resamples.sums(said.astype(np.float64) + was, user_N)
        with np.errstate(invalid="ignore"):
            draws.append(2 * resamples.sums(said & was, user_N) / size_R)
    held = np.isfinite(draws).sum(axis=0)  # an action that a resample has not is not part of its mean
    return Estimate(
        "macro_f1", float(np.mean(values)), np.nansum(draws, axis=0) / np.maximum(held, 1), len(actual_N)
    )


def bins_of(p_N: NDArray, bins: int = BINS) -> NDArray[np.int64]:
    """The bin of each probability: equally many events a bin, but equal probabilities share one."""
    edges = np.unique(np.quantile(p_N, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, p_N, side="right")


def calibration_error(
    metric: str, p_N: NDArray, label_N: Labels, user_N: Users, resamples: Resamples
) -> Estimate:
    """Expected calibration error: |mean probability - share of hits| a bin, weighted by the bin's events.

    Resampling adds noise whose absolute value only enlarges the error, so the draws are moved to have their mean at
    the value itself: the interval shows the spread, not that bias.

    Source: Naeini et al. (2015); equal-mass bins after Nguyen & O'Connor (2015).
    """
    bin_N, excess_N = bins_of(p_N), p_N.astype(np.float64) - label_N
    value = np.abs(np.bincount(bin_N, excess_N)).sum() / len(p_N)
    total_R = np.zeros(len(resamples.weight_RU))
    for number in np.unique(bin_N):
        total_R += np.abs(resamples.sums(np.where(bin_N == number, excess_N, 0), user_N))
    draws = total_R / resamples.sums(np.ones(len(p_N)), user_N)
    return Estimate(metric, float(value), np.maximum(draws - draws.mean() + value, 0), len(p_N))


def areas(p_N: NDArray, label_N: Labels, user_N: Users, resamples: Resamples) -> list[Estimate]:
    """Areas under the ROC curve and (as average precision) under the precision-recall curve; ties share a point."""
    order = np.argsort(p_N, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(p_N[order]) > 0)) if len(p_N) else np.zeros(0, np.int64)
    user, label = user_N[order], label_N[order]

    def both(weight_RN: NDArray) -> tuple[NDArray, NDArray]:
        positive = np.add.reduceat(np.where(label, weight_RN, 0), starts, axis=1, dtype=np.float64)
        negative = np.add.reduceat(np.where(label, 0, weight_RN), starts, axis=1, dtype=np.float64)
        n_positive, n_negative = positive.sum(axis=1), negative.sum(axis=1)
        below = np.cumsum(negative, axis=1) - negative
        with np.errstate(invalid="ignore", divide="ignore"):
            roc = (positive * (below + 0.5 * negative)).sum(axis=1) / (n_positive * n_negative)
            hits = np.cumsum(positive[:, ::-1], axis=1)
            said = hits + np.cumsum(negative[:, ::-1], axis=1)
            precision = np.where(said > 0, hits / said, 0)
            pr = (positive[:, ::-1] * precision).sum(axis=1) / n_positive
        return roc, pr

    values = both(np.ones((1, len(p_N)), np.float32))
    draws = [
        np.concatenate(part) for part in zip(*(both(w[:, user]) for w in resamples.parts()), strict=True)
    ]
    return [
        Estimate(name, float(value[0]), draw, len(p_N))
        for name, value, draw in zip(("roc_auc", "pr_auc"), values, draws, strict=True)
    ]


def median(metric: str, values_N: NDArray, user_N: Users, resamples: Resamples) -> Estimate:
    """The median over events."""
    order = np.argsort(values_N, kind="stable")
    ranked, user = values_N[order], user_N[order]
    draws = []
    for weight_RU in resamples.parts():
        held = np.cumsum(weight_RU[:, user], axis=1, dtype=np.float64)
        draws += [ranked[np.searchsorted(row, row[-1] / 2)] for row in held if row[-1] > 0]
    draws += [np.nan] * (len(resamples.weight_RU) - len(draws))
    return Estimate(metric, float(np.median(values_N)), np.array(draws), len(values_N))


def auc(label: Labels, score: NDArray) -> float:
    """Area under the ROC curve: the chance that a positive ranks above a negative, ties half; NaN if one lacks."""
    positives = int(label.sum())
    negatives = len(label) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
    return float((rank[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def best_f1_threshold(p_N: NDArray, label_N: Labels) -> float:
    """The probability from which on saying "yes" has the greatest F1."""
    order = np.argsort(-p_N, kind="stable")
    ranked = p_N[order]
    last = np.append(np.diff(ranked) < 0, True)  # only whole groups of equal probabilities can be said
    f1 = 2 * np.cumsum(label_N[order]) / (np.arange(1, len(order) + 1) + max(1, int(label_N.sum())))
    return float(ranked[np.where(last, f1, -1.0).argmax()])


def cross_fitted_threshold(p_N: NDArray, label_N: Labels, user_N: Users) -> NDArray:
    """For each event the threshold that is best for the users of the other four of five folds, (N,)."""
    threshold = np.full(len(p_N), 0.5)
    fold = user_N % _FOLDS
    for number in range(_FOLDS):
        others = fold != number
        if label_N[others].any():
            threshold[fold == number] = best_f1_threshold(p_N[others], label_N[others])
    return threshold
