"""Who had stayed away by the end of a log, said at a moment before it, beside recency and usual learners.

Everything that is fitted has its answers before the moment at which it is tested, though customers may be the same:
a customer of March is asked again in June. A fit whose answers overlapped the test would know part of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from models.churn import ReturnCurves
from models.columns import Columns, take
from models.errors import TrainingError
from models.evaluation import measures
from models.evaluation.comparison import Figures
from models.evaluation.intervals import Estimate, Resamples
from models.evaluation.predictions import run
from models.return_odds import (
    DAY_S,
    Landmarks,
    asked,
    comes_back,
    fit_return_odds,
    landmarks_of,
    user_numbers,
)
from models.runtime import StepEngine
from models.split import until

__all__ = ["HEAD", "ChurnEvaluation", "evaluated_churn"]

HEAD = "churn"
_TREES: dict[str, object] = {
    "objective": "binary",
    "num_leaves": 6,
    "learning_rate": 0.04,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 10.0,
    "seed": 1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
_ROUNDS = 120


@dataclass(frozen=True)
class ChurnEvaluation:
    """Figures of who stays away; of how many users at the moment, how many of them did, and what was fitted on."""

    figures: Figures
    users: int
    stayed_away: int
    moment_ms: int
    fitted_answers: int


def evaluated_churn(
    columns: Columns,
    purchase_code: int,
    horizon_s: float,
    moment_ms: int | None = None,
    *,
    engine: StepEngine | None = None,
) -> ChurnEvaluation:
    """Ask who stays away at a moment; recency, logistic regression and boosted trees are asked beside the model.

    Args:
        columns: each user's events contiguous and in order.
        purchase_code: of the vocabulary, -1 without one.
        horizon_s: after which who has not come back stayed away.
        moment_ms: when it is asked; by default one horizon before the log's end.
        engine: of a model to be measured, trained on events before the moment; without, return odds are fitted here
            as ``foreclick train`` fits them.

    Raises:
        TrainingError: the log ends before the answers, nobody was there at the moment, or there is nothing to fit on.
    """
    first, end = int(columns["event_time_ms"].min()), int(columns["event_time_ms"].max())
    moment = round(end - horizon_s * 1000) if moment_ms is None else moment_ms
    if not first < moment <= end - horizon_s * 1000:
        raise TrainingError(
            f"A horizon of {horizon_s / DAY_S:g} days after {moment} (Unix ms) does not lie within the log ({first} to "
            f"{end}). Give a shorter --horizon-days, another --cut or a longer log."
        )
    before = until({**columns, "number": np.arange(len(columns["row"]))}, moment + 1)
    number = before.pop("number")
    test = landmarks_of(columns, moment, horizon_s, comes_back(columns, purchase_code))
    fit = asked(before, horizon_s, purchase_code, moment)
    away = test.stayed_away_N
    if not away.any() or away.all():
        raise TrainingError(
            f"Of {len(away)} users at {moment} (Unix ms) all or none stayed away: there is nothing to rank."
        )
    resamples, user = Resamples(len(away)), np.arange(len(away))

    def estimates(score_N: NDArray, probability: bool = True) -> list[Estimate]:
        found = list(measures.areas(score_N, away, user, resamples))
        if probability:
            found.append(measures.calibration_error("ece", score_N, away, user, resamples))
            found.append(
                resamples.mean("log_loss", measures.nats(np.where(away, score_N, 1 - score_N)), user)
            )
        return found

    if engine is None:
        odds = fit_return_odds(before, horizon_s, purchase_code, moment)
        if odds is None:
            raise TrainingError(
                f"Before {moment} (Unix ms) too few users came back or stayed away for {horizon_s / DAY_S:g} days. "
                f"Give a shorter --horizon-days, a later --cut or a longer log."
            )
        base = odds.bases(user_numbers(take(columns, test.event_N), purchase_code))
        figures = Figures("return_odds")
        figures.add(HEAD, "return_odds", estimates(expit(odds.log_odds(base, test.silence_s_N))))
    else:
        figures = Figures("model")
        odds = engine.artefact.return_odds
        result = run(engine, before)
        at = np.searchsorted(number, test.event_N)
        mixture = result.gap_mixture[at].parameters()
        silence = np.maximum(test.silence_s_N, 1.0)
        if odds is not None:
            curves = ReturnCurves(horizon_s, mixture, odds, result.return_base[at])
            figures.add(HEAD, "model", estimates(1 - curves.chance(silence)))
        gap_head = estimates(1 - ReturnCurves(horizon_s, mixture).chance(silence))
        figures.add(HEAD, "model" if odds is None else "gap_head", gap_head)
    figures.add(HEAD, "recency", estimates(test.silence_s_N, probability=False))
    if fit is not None:
        known, asked_now = _snapshot(before, fit, purchase_code), _snapshot(columns, test, purchase_code)
        figures.add(HEAD, "logistic_regression", estimates(_logistic(known, fit.stayed_away_N, asked_now)))
        data = lightgbm.Dataset(known, fit.stayed_away_N, params=_TREES)
        said = np.asarray(lightgbm.train(_TREES, data, _ROUNDS).predict(asked_now, num_threads=1))
        figures.add(HEAD, "lightgbm", estimates(said))
    return ChurnEvaluation(
        figures, len(away), int(away.sum()), moment, 0 if fit is None else len(fit.stayed_away_N)
    )


def _snapshot(columns: Columns, asked_of: Landmarks, purchase_code: int) -> NDArray[np.float64]:
    """What analysts usually take: recency, frequency, money, tenure, rhythm, returns; (N, 9)."""
    at, silence = asked_of.event_N, asked_of.silence_s_N / DAY_S
    start = np.maximum.accumulate(np.where(columns["wave"] == 0, np.arange(len(columns["row"])), 0))[at]
    tenure = (columns["event_time_ms"][at] - columns["event_time_ms"][start]) / (1000 * DAY_S)
    numbers = np.nan_to_num(user_numbers(take(columns, at), purchase_code))
    visits = columns["session_index"][at].astype(np.float64)
    rhythm = tenure / np.maximum(visits - 1, 1)
    orders = np.expm1(numbers[:, 0])
    gap = np.maximum(columns["gap_ms"][at], 0) / (1000 * DAY_S)
    return np.column_stack(
        [
            np.log1p(silence),
            silence,
            numbers,
            np.log1p(tenure),
            np.log1p(gap),
            np.log1p(silence) - np.log1p(rhythm),
            1 - orders / np.maximum(columns["life_events"][at], 1),
        ]
    )


def _logistic(x_NF: NDArray, label_N: NDArray[np.bool_], z_MF: NDArray) -> NDArray[np.float64]:
    mean, spread = x_NF.mean(axis=0), np.maximum(x_NF.std(axis=0), 1e-6)
    learner = LogisticRegression(C=0.1, max_iter=2000).fit((x_NF - mean) / spread, label_N)
    return np.asarray(learner.predict_proba((z_MF - mean) / spread)[:, 1], np.float64)
