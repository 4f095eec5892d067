"""Who does not come back, straight from recency, frequency and money: for logs that are long enough to have shown it.

A gap head learns from the time to the next event; a log of orders knows more about who stays away. At moments in the
past (landmarks), all users who had been there are asked: how long silent, how many orders and visits, of which sums,
and did they come back within the horizon? A logistic regression on these is

    log-odds of staying away = base of the user's last event + slope x log(1 + days of silence),  slope > 0

so the chance of coming back only falls while a user is silent, and the moment at which it falls below a threshold is
a formula. Every answer lies before the end of what is trained on.

Source: landmarking as of van Houwelingen (2007); recency, frequency, monetary value as of Fader, Hardie & Lee (2005).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.columns import WINDOW, Columns

__all__ = ["Landmarks", "ReturnOdds", "comes_back", "fit_return_odds", "landmarks_of", "user_numbers"]

DAY_S = 86_400.0
#: The first landmark comes when a third of a horizon has been seen, the next ones a twelfth of it later each.
_FIRST, _STEP = 1 / 3, 1 / 12
#: Different users who came back, and who did not, without whom nothing is fitted.
_FEWEST = 50
_PENALTY = 0.1
_NUMBERS = ("orders", "visits", "mean_log_price")


@dataclass(frozen=True)
class ReturnOdds:
    """The regression. ``mean`` and ``weight`` are of ``user_numbers``; a missing number counts as its mean."""

    intercept: float
    weight: tuple[float, ...]
    mean: tuple[float, ...]
    slope: float

    def bases(self, numbers_NF: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log-odds of staying away as they are with the last event, (N,)."""
        base = np.full(len(numbers_NF), self.intercept)
        # Number by number: a matrix product may round otherwise for other users beside.
        for number_N, weight, mean in zip(numbers_NF.T, self.weight, self.mean, strict=True):
            base = base + weight * np.where(np.isnan(number_N), 0.0, number_N - mean)
        return base

    def log_odds(self, base_N: NDArray[np.float64], silence_s: NDArray) -> NDArray[np.float64]:
        """The log-odds of staying away after so long a silence."""
        return np.asarray(base_N + self.slope * np.log1p(np.asarray(silence_s, np.float64) / DAY_S))

    def as_dict(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return {
            "method": "logistic regression on landmarks",
            "numbers": list(_NUMBERS),
            "intercept": self.intercept,
            "weight": list(self.weight),
            "mean": list(self.mean),
            "slope": self.slope,
        }

    @classmethod
    def from_dict(cls, kept: dict[str, Any] | None) -> ReturnOdds | None:
        """The opposite; None of None.

        Raises:
            ValueError: other numbers than this build's, or odds that do not rise with silence.
        """
        if kept is None:
            return None
        if kept["numbers"] != list(_NUMBERS) or not kept["slope"] > 0:
            raise ValueError(f"return odds of {kept['numbers']} with slope {kept['slope']}")
        return cls(kept["intercept"], tuple(kept["weight"]), tuple(kept["mean"]), kept["slope"])


def comes_back(columns: Columns, purchase_code: int) -> NDArray[np.bool_]:
    """The events that count as coming back: orders in a log of orders and returned goods, any event in another."""
    orders: NDArray[np.bool_] = columns["action"] == purchase_code
    mostly_orders = len(orders) > 0 and orders.mean() >= 0.5
    return orders if mostly_orders else np.ones(len(orders), np.bool_)


def user_numbers(columns: Columns, purchase_code: int) -> NDArray[np.float64]:
    """Orders (events without such an action), visits and mean log price of the window, after each event, (N, 3)."""
    life = columns["life_events"] if purchase_code < 0 else columns["action_life"][:, purchase_code]
    held = np.arange(WINDOW) >= WINDOW - columns["window_count"][:, None].astype(np.int64)
    price = columns["window_log_price"].astype(np.float64)
    held &= ~np.isnan(price)
    if purchase_code >= 0:
        held &= columns["window_action"] == purchase_code
    total, count = np.zeros(len(price)), held.sum(axis=1)
    for slot in range(WINDOW):  # one after the other: sums over an axis may go another way for other rows
        total = total + np.where(held[:, slot], price[:, slot], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_price = np.where(count > 0, total / count, np.nan)
    return np.stack(
        [
            np.log1p(life.astype(np.float64)),
            np.log1p(columns["session_index"].astype(np.float64)),
            mean_price,
        ],
        axis=1,
    )


@dataclass(frozen=True)
class Landmarks:
    """N users asked at a moment: number of their last event until then, silence since, and whether they stayed away."""

    event_N: NDArray[np.int64]
    silence_s_N: NDArray[np.float64]
    stayed_away_N: NDArray[np.bool_]

    @classmethod
    def together(cls, parts: list[Landmarks]) -> Landmarks:
        """Those of several moments."""
        return cls(
            np.concatenate([part.event_N for part in parts]),
            np.concatenate([part.silence_s_N for part in parts]),
            np.concatenate([part.stayed_away_N for part in parts]),
        )


def landmarks_of(columns: Columns, moment_ms: int, horizon_s: float, back_N: NDArray[np.bool_]) -> Landmarks:
    """Ask all users who came (``back_N``) until a moment whether they do again within the horizon after it.

    Args:
        columns: each user's events contiguous and in order.
        moment_ms: the moment; what comes after it is seen only as the answer.
        horizon_s: after which who has not come back stayed away.
        back_N: of ``comes_back``.
    """
    time_ms, start = columns["event_time_ms"], np.flatnonzero(columns["wave"] == 0)
    if not len(start):
        nothing = np.zeros(0)
        return Landmarks(nothing.astype(np.int64), nothing, nothing.astype(np.bool_))
    # A user's events up to the first one after the moment; what came late after that one was not known then.
    over = np.append(0, np.cumsum(time_ms > moment_ms))
    opening = np.maximum.accumulate(np.where(columns["wave"] == 0, np.arange(len(time_ms)), 0))
    until = over[1:] == over[opening]
    last_U = np.maximum.reduceat(np.where(until, np.arange(len(until)), -1), start)
    was_there_U = np.logical_or.reduceat(until & back_N, start)
    answer = back_N & (time_ms > moment_ms) & (time_ms <= moment_ms + horizon_s * 1000)
    came_U = np.logical_or.reduceat(answer, start)
    event = last_U[was_there_U]
    return Landmarks(event, (moment_ms - time_ms[event]) / 1000.0, ~came_U[was_there_U])


def moments_ms(first_ms: int, end_ms: int, horizon_s: float) -> list[int]:
    """Moments whose horizons end by ``end_ms``, the last one first."""
    horizon_ms = horizon_s * 1000
    latest, first = end_ms - horizon_ms, first_ms + _FIRST * horizon_ms
    count = int((latest - first) // (_STEP * horizon_ms)) + 1 if latest >= first else 0
    return [round(latest - number * _STEP * horizon_ms) for number in range(max(count, 0))]


def asked(
    columns: Columns, horizon_s: float, purchase_code: int, end_ms: int | None = None
) -> Landmarks | None:
    """All landmarks of a log whose answers are known by ``end_ms`` (its own end by default); None if there are none."""
    time_ms = columns["event_time_ms"]
    if not len(time_ms):
        return None
    back = comes_back(columns, purchase_code)
    end = int(time_ms.max()) if end_ms is None else end_ms
    moments = moments_ms(int(time_ms.min()), end, horizon_s)
    if not moments:
        return None
    return Landmarks.together([landmarks_of(columns, moment, horizon_s, back) for moment in moments])


def fit_return_odds(
    columns: Columns, horizon_s: float, purchase_code: int, end_ms: int | None = None
) -> ReturnOdds | None:
    """Fit the regression; None if the log is too short for the horizon, too few users came back or stayed away.

    None, too, if staying away does not become likelier with silence. Arguments as ``asked``.
    """
    from sklearn.linear_model import LogisticRegression  # a worker, which only reads odds, need not load it

    found = asked(columns, horizon_s, purchase_code, end_ms)
    if found is None:
        return None
    away = found.stayed_away_N
    users = columns["row"][found.event_N]
    if min(len(np.unique(users[away])), len(np.unique(users[~away]))) < _FEWEST:
        return None
    numbers = user_numbers({name: column[found.event_N] for name, column in columns.items()}, purchase_code)
    with np.errstate(invalid="ignore"):
        known = ~np.isnan(numbers)
        mean = np.where(known, numbers, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, numbers - mean, 0.0)
    spread = np.maximum(centred.std(axis=0), 1e-6)
    silence = np.log1p(found.silence_s_N / DAY_S)
    silence_spread = max(float(silence.std()), 1e-6)
    x = np.concatenate([centred / spread, (silence / silence_spread)[:, None]], axis=1)
    learner = LogisticRegression(C=_PENALTY, max_iter=1000).fit(x, away)
    weight = learner.coef_[0] / np.append(spread, silence_spread)
    slope = round(float(weight[-1]), 9)
    if slope <= 0:
        return None
    rounded = [tuple(round(float(one), 9) for one in part) for part in (weight[:-1], mean)]
    return ReturnOdds(round(float(learner.intercept_[0]), 9), rounded[0], rounded[1], slope)
