"""Logistic regression on the inputs of the trees: lags one-hot, numbers scaled by the training users.

Source: scikit-learn's L-BFGS; the strength of the L2 penalty is chosen on the tuning users.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from models.baselines.inputs import LAGS, Examples, next_action_by, purchase_by
from models.baselines.markov import mean_loss
from models.split import Split

# Ascending: each fit starts from the more penalised one.
_INVERSE_PENALTIES = (0.001, 0.01, 0.1)
_UNTUNED = 0.01
_ITERATIONS = 100
# In standard deviations; a test user's absurd price must not decide alone.
_FURTHEST = 8.0


def next_action(split: Split) -> NDArray[np.float64]:
    """The distribution of each test event's action, (N, A)."""
    return next_action_by(_predicted, split)


def purchase(split: Split) -> NDArray[np.float64]:
    """The probability that a purchase follows each test event in its session, (N,)."""
    return purchase_by(_purchases, split)


def _purchases(examples: Examples, classes: NDArray[np.int64]) -> NDArray[np.float64]:
    # As if half an event of either kind had been seen besides: float32 rounds what is all but certain to 1.
    n = len(examples.fit_label)
    return (n * _predicted(examples, classes)[:, 1] + 0.5) / (n + 1)


def _predicted(examples: Examples, classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities of the classes for the test examples, of the penalty that the tuning users like best."""
    scaling = _Scaling.fit(examples.fit)
    fit, test = scaling.scaled(examples.fit), scaling.scaled(examples.test)
    known = np.isin(examples.tune_label, classes)
    tune, tune_class = (
        scaling.scaled(examples.tune[known]),
        np.searchsorted(classes, examples.tune_label[known]),
    )
    model = LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
    best, predicted = np.inf, np.zeros((len(test), len(classes)))
    for model.C in _INVERSE_PENALTIES if known.any() else (_UNTUNED,):
        with warnings.catch_warnings():
            # Stopping early is one more penalty; the tuning users judge what came out of it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(fit, examples.fit_label)
        loss = mean_loss(model.predict_proba(tune), tune_class) if known.any() else 0.0
        if loss >= best:
            # A weaker penalty takes longer, and the loss has one minimum.
            break
        best, predicted = loss, model.predict_proba(test).astype(np.float64)
    return predicted


@dataclass(frozen=True)
class _Scaling:
    """How raw inputs become numbers around 0; what is constant among training users is left out."""

    highest_lag: int
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    sometimes_missing: NDArray[np.bool_]
    varies: NDArray[np.bool_]

    @classmethod
    def fit(cls, x_NF: NDArray[np.float32]) -> _Scaling:
        numbers = x_NF[:, LAGS:].astype(np.float64)
        missing: NDArray[np.bool_] = ~np.isfinite(numbers)
        present = np.maximum((~missing).sum(axis=0), 1)
        mean = np.where(missing, 0, numbers).sum(axis=0) / present
        sd = np.sqrt(np.where(missing, 0, (numbers - mean) ** 2).sum(axis=0) / present)
        sometimes = np.asarray(missing.any(axis=0) & ~missing.all(axis=0))
        draft = cls(
            int(x_NF[:, :LAGS].max()), mean, np.where(sd > 1e-6, sd, 1.0), sometimes, np.ones(0, np.bool_)
        )
        wide = draft._wide(x_NF)
        return cls(draft.highest_lag, draft.mean, draft.sd, sometimes, wide.std(axis=0) > 1e-6)

    def scaled(self, x_NF: NDArray[np.float32]) -> NDArray[np.float32]:
        """One-hot lags, then numbers, 0 where missing, then which are missing."""
        return self._wide(x_NF)[:, self.varies].astype(np.float32)

    def _wide(self, x_NF: NDArray[np.float32]) -> NDArray[np.float64]:
        lags = x_NF[:, :LAGS].astype(np.int64)
        one_hot = lags[:, :, None] == np.arange(self.highest_lag + 1)
        numbers = x_NF[:, LAGS:].astype(np.float64)
        missing = ~np.isfinite(numbers)
        scaled = np.where(missing, 0.0, (np.where(missing, 0.0, numbers) - self.mean) / self.sd)
        scaled = np.clip(scaled, -_FURTHEST, _FURTHEST)
        return np.concatenate(
            [
                one_hot.reshape(len(x_NF), LAGS * (self.highest_lag + 1)),
                scaled,
                missing[:, self.sometimes_missing],
            ],
            axis=1,
        )
