"""When silence has lasted so long that coming back has become unlikely.

The gap head says how long a user is silent after an event: a mixture of log-normals with survival function S. Of one
who has been silent for s seconds, the chance to come back within the next H seconds is

    chance(s) = 1 - S(s + H) / S(s)

The deadline is the moment at which it falls below a threshold. Of a user who orders every other month it is low on
the first day, if H is a month, and rises before it falls: such a rise is waited for, but no longer than H, because who
is away for longer than that is gone by the operator's own word.

A model that was trained on a long enough log has return odds instead (``models.return_odds``), whose chance falls with
every second; ``ReturnCurves`` is what alerts ask, whichever of the two a model has.

Everything is computed in logarithms, element by element: far in the tail S is no longer a double, and a deadline must
not depend on the users who stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_ndtr

from models.return_odds import DAY_S, ReturnOdds

__all__ = [
    "FIRST_SILENCE_S",
    "LAST_SILENCE_S",
    "ReturnCurves",
    "log_survival",
    "odds_deadlines",
    "return_chance",
    "silence_deadlines",
]

#: Within a session nobody is silent: no deadline comes before this, seconds.
FIRST_SILENCE_S: Final = 1_800
#: Beyond ten years a deadline is as good as none.
LAST_SILENCE_S: Final = 315_576_000
#: The search looks at the chance this many times while the silence doubles; a shorter rise or fall may be overlooked.
_LOOKS_A_DOUBLING: Final = 2


def log_survival(mixture_3CN: NDArray[np.floating], silence_s: NDArray[np.floating]) -> NDArray[np.float64]:
    """The log probability that the next event comes later than ``silence_s`` (at least 1), -inf only for inf.

    Args:
        mixture_3CN: weights, means and sigmas of log seconds of C components, for N users.
        silence_s: (N,) or one for all.
    """
    weight_CN, mean_CN, sigma_CN = np.asarray(mixture_3CN, np.float64)
    with np.errstate(divide="ignore"):
        terms_CN = np.log(weight_CN) + log_ndtr((mean_CN - np.log(silence_s)) / sigma_CN)
    highest_N = terms_CN.max(axis=0)
    # Added up one after the other: a sum over an axis may go another way for another shape.
    total_N = np.zeros_like(highest_N)
    for term_N in terms_CN:
        total_N = total_N + np.exp(term_N - highest_N)
    return np.asarray(highest_N + np.log(total_N), np.float64)


def return_chance(
    mixture_3CN: NDArray[np.floating], silence_s: NDArray[np.floating], horizon_s: float
) -> NDArray[np.float64]:
    """The chance of coming back within ``horizon_s`` after ``silence_s`` of silence; arguments as ``log_survival``."""
    silence_s = np.asarray(silence_s, np.float64)
    later = log_survival(mixture_3CN, silence_s + horizon_s) - log_survival(mixture_3CN, silence_s)
    return np.asarray(-np.expm1(np.minimum(later, 0.0)), np.float64)


def silence_deadlines(
    mixture_3CN: NDArray[np.floating],
    horizon_s: float,
    threshold: float,
    *,
    first_s: int = FIRST_SILENCE_S,
    last_s: int = LAST_SILENCE_S,
) -> NDArray[np.int64]:
    """After how many whole seconds of silence the chance of coming back within the horizon falls below a threshold.

    The search goes outwards in steps and halves the first one over which the chance falls, so that it is below the
    threshold at the answer and was not a second before.

    Args:
        mixture_3CN: as ``log_survival``; ``models.micro_batch.StepResult.gap_mixture.parameters()``.
        horizon_s: H, more than 0.
        threshold: of the chance, between 0 and 1.
        first_s: the earliest answer, at least 1: that of a user whose chance is below the threshold by then and does
            not rise to it before the horizon has passed.
        last_s: the latest answer.

    Returns:
        (N,), 0 where the chance does not fall below the threshold until ``last_s``.

    Raises:
        ValueError: horizon, threshold or limits are out of range.
    """
    if not (horizon_s > 0 and 0 < threshold < 1 and 1 <= first_s <= last_s):
        raise ValueError(
            f"A deadline needs a horizon above 0 s, a threshold between 0 and 1, and 1 <= first_s <= last_s; "
            f"got {horizon_s}, {threshold}, {first_s} and {last_s}."
        )
    N = mixture_3CN.shape[2]
    low, high = np.full(N, first_s, np.int64), np.full(N, first_s, np.int64)
    searching, was_above = np.arange(N), np.zeros(N, np.bool_)
    before_s = silence_s = first_s
    while len(searching):
        chance = return_chance(mixture_3CN[:, :, searching], np.array(float(silence_s)), horizon_s)
        below = chance < threshold
        fell = searching[below & was_above[searching]]
        low[fell], high[fell] = before_s, silence_s
        was_above[searching[~below]] = True
        waits = ~below | (~was_above[searching] & (silence_s < horizon_s))
        searching = searching[waits]
        if silence_s == last_s:
            high[searching[was_above[searching]]] = 0
            break
        before_s = silence_s
        silence_s = min(last_s, max(silence_s + 1, round(silence_s * 2 ** (1 / _LOOKS_A_DOUBLING))))

    halving = np.flatnonzero(high - low > 1)
    while len(halving):
        middle = (low[halving] + high[halving]) // 2
        below = return_chance(mixture_3CN[:, :, halving], middle.astype(np.float64), horizon_s) < threshold
        high[halving[below]], low[halving[~below]] = middle[below], middle[~below]
        halving = halving[high[halving] - low[halving] > 1]
    return high


def odds_deadlines(
    odds: ReturnOdds,
    base_N: NDArray[np.float64],
    threshold: float,
    *,
    first_s: int = FIRST_SILENCE_S,
    last_s: int = LAST_SILENCE_S,
) -> NDArray[np.int64]:
    """``silence_deadlines`` of return odds: the first whole second at which the chance is below the threshold.

    Args:
        odds: of the model.
        base_N: of ``ReturnOdds.bases``.
        threshold, first_s, last_s: as of ``silence_deadlines``.
    """
    away = np.log1p(-threshold) - np.log(threshold)
    power = np.minimum((away - base_N) / odds.slope, np.log1p(last_s / DAY_S) + 1.0)
    near = np.floor(np.clip(np.expm1(power) * DAY_S, first_s, last_s)).astype(np.int64)
    found = np.zeros(len(near), np.int64)
    for step in (2, 1, 0, -1):  # the formula and the chance itself may round a second apart
        silence = np.clip(near + step, first_s, last_s)
        found = np.where(expit(-odds.log_odds(base_N, silence)) < threshold, silence, found)
    return found


@dataclass(frozen=True)
class ReturnCurves:
    """How likely N users are to come back within the horizon, as a function of their silence.

    ``mixture_3CN``: of the gap head. ``odds`` and ``base_N``: of a model that has them; the mixture is then not read.
    """

    horizon_s: float
    mixture_3CN: NDArray[np.floating]
    odds: ReturnOdds | None = None
    base_N: NDArray[np.float64] | None = None

    def chance(self, silence_s: NDArray[np.floating]) -> NDArray[np.float64]:
        """The chance of each after so many seconds of silence (at least 1), one for all or (N,)."""
        if self.odds is None or self.base_N is None:
            return return_chance(self.mixture_3CN, silence_s, self.horizon_s)
        return np.asarray(expit(-self.odds.log_odds(self.base_N, silence_s)), np.float64)

    def deadlines(self, threshold: float) -> NDArray[np.int64]:
        """After how many seconds of silence the chance falls below a threshold, as of ``silence_deadlines``."""
        if self.odds is None or self.base_N is None:
            return silence_deadlines(self.mixture_3CN, self.horizon_s, threshold)
        return odds_deadlines(self.odds, self.base_N, threshold)
