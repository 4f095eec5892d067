"""LightGBM on lags, counts and recency: what a network without hand-made state has to beat.

Source: Ke et al. (2017), LightGBM. Shallow trees, each on half of the numbers, as many as the tuning users ask for.
"""

from __future__ import annotations

import lightgbm
import numpy as np
from numpy.typing import NDArray

from models.baselines.inputs import LAGS, Examples, next_action_by, purchase_by
from models.split import Split

_ROUNDS = 500
_PATIENCE = 25
# Without tuning users nobody says when to stop: about as many as a log of some 50,000 events takes.
_ROUNDS_UNTUNED = 50
_PARAMETERS: dict[str, object] = {
    "num_leaves": 8,
    "learning_rate": 0.1,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 10.0,
    "cat_smooth": 20.0,
    "max_bin": 63,
    # Equal logs give equal trees on one machine, and other work keeps its cores.
    "seed": 1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
# Purchases are few: smaller steps and trees, or the tuning users stop them at once.
_PURCHASE: dict[str, object] = {"num_leaves": 4, "learning_rate": 0.05, "min_data_in_leaf": 100}


def next_action(split: Split) -> NDArray[np.float64]:
    """The distribution of each test event's action, (N, A)."""
    return next_action_by(_actions, split)


def purchase(split: Split) -> NDArray[np.float64]:
    """The probability that a purchase follows each test event in its session, (N,)."""
    return purchase_by(_purchases, split)


def _actions(examples: Examples, classes: NDArray[np.int64]) -> NDArray[np.float64]:
    booster = _boosted(examples, classes, {"objective": "multiclass", "num_class": len(classes)})
    return np.asarray(booster.predict(examples.test, num_threads=1))


def _purchases(examples: Examples, classes: NDArray[np.int64]) -> NDArray[np.float64]:
    booster = _boosted(examples, classes, _PURCHASE | {"objective": "binary"})
    return np.asarray(booster.predict(examples.test, num_threads=1))


def _boosted(
    examples: Examples, classes: NDArray[np.int64], parameters: dict[str, object]
) -> lightgbm.Booster:
    parameters = _PARAMETERS | parameters
    fit = lightgbm.Dataset(
        examples.fit,
        np.searchsorted(classes, examples.fit_label),
        categorical_feature=list(range(LAGS)),
        params=parameters,
    )
    # Nothing is learned of a class that no training user had; a loss over it would only be noise.
    known = np.isin(examples.tune_label, classes)
    if not known.any():
        return lightgbm.train(parameters, fit, _ROUNDS_UNTUNED)
    tune = fit.create_valid(examples.tune[known], np.searchsorted(classes, examples.tune_label[known]))
    stop = lightgbm.early_stopping(_PATIENCE, verbose=False)
    return lightgbm.train(parameters, fit, _ROUNDS, valid_sets=[tune], callbacks=[stop])
