"""When silence has lasted so long that coming back has become unlikely.

The gap head says how long a user is silent after an event: a mixture of log-normals with survival function S. Of one
who has been silent for s seconds, the chance to come back within the next H seconds is

    chance(s) = 1 - S(s + H) / S(s)

The deadline is the moment at which it falls below a threshold. Of a user who orders every other month it is low on
the first day, if H is a month, and rises before it falls: such a rise is waited for, but no longer than H, because who
is away for longer than that is gone by the operator's own word.

A model that was trained on a long enough log has return odds instead (``models.return_odds``), whose chance falls with
every second; ``ReturnCurves`` is what alerts ask, whichever of the two a model has.

The search runs in single precision over a grid of silences that all users share. Far in the tail, where S is no longer
such a number, it is done again in logarithms. Both go element by element: a deadline must not depend on the users who
stand beside it. A tenth of the work tells for nearly every event a silence that is surely shorter than its deadline
(``least_silences``), and nearly every event is followed by another one before that is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, log, log2, sqrt
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_ndtr

from models.return_odds import DAY_S, ReturnOdds

__all__ = [
    "FIRST_SILENCE_S",
    "LAST_SILENCE_S",
    "ReturnCurves",
    "least_silences",
    "log_survival",
    "odds_deadlines",
    "return_chance",
    "silence_deadlines",
    "silence_grid",
]

#: Within a session nobody is silent: no deadline comes before this, seconds.
FIRST_SILENCE_S: Final = 1_800
#: Beyond ten years a deadline is as good as none.
LAST_SILENCE_S: Final = 315_576_000
#: The search looks at the chance this many times while the silence doubles; a shorter rise or fall may be overlooked.
_LOOKS_A_DOUBLING: Final = 2
#: Between two looks it halves this often, so that a deadline is exact to 0.3 % of the silence.
_HALVINGS: Final = 7
#: Below it a survival in single precision is not trusted.
_LEAST_SURVIVAL: Final = 1e-30

#: Ends of the pieces on which the chance is bounded, in first silences: a day and a half, five days, three weeks. Each
#: is a place at which the search looks.
_PIECES: Final = (1, 64, 256, 1024)
#: A bound counts only when it is that far from the threshold, which is more than either search rounds by.
_MARGIN: Final = 1e-3

#: Whether the chance is below the threshold after silences (K, N) or (K, 1), for N users: bool (K, N).
_Below = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


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

    The search looks at ever longer silences and halves the first step over which the chance falls.

    Args:
        mixture_3CN: as ``log_survival``; ``models.micro_batch.StepResult.gap_mixture.parameters()``.
        horizon_s: H, more than 0.
        threshold: of the chance, between 0 and 1.
        first_s: the earliest answer, at least 1: that of a user whose chance is below the threshold by then and does
            not rise to it before the horizon has passed.
        last_s: the latest answer.

    Returns:
        (N,) of ``silence_grid``: the chance is below the threshold there and is not one place before, but for the
        rounding of single precision (2e-5 of the chance). 0 where it does not fall below it until ``last_s``.

    Raises:
        ValueError: horizon, threshold or limits are out of range.
    """
    if not (horizon_s > 0 and 0 < threshold < 1 and 1 <= first_s <= last_s):
        raise ValueError(
            f"A deadline needs a horizon above 0 s, a threshold between 0 and 1, and 1 <= first_s <= last_s; "
            f"got {horizon_s}, {threshold}, {first_s} and {last_s}."
        )
    grid = silence_grid(first_s, last_s)
    weight_CN, mean_CN, sigma_CN = torch.from_numpy(np.asarray(mixture_3CN, np.float32))
    parts = list(zip(weight_CN, mean_CN, 1 / (sigma_CN * sqrt(2)), strict=True))

    def survival(silence_s: NDArray[np.float64]) -> torch.Tensor:
        log_KN = torch.from_numpy(np.log(silence_s).astype(np.float32))
        total_KN = torch.zeros(len(silence_s), weight_CN.shape[1])
        for weight_N, mean_N, scale_N in parts:
            # The halves of S = sum of weight / 2 erfc(...) cancel in the ratio.
            # In place: these pass through memory more than they are computed.
            part_KN = (log_KN - mean_N).mul_(scale_N)
            total_KN.add_(torch.erfc(part_KN, out=part_KN).mul_(weight_N))
        return total_KN

    def below(silence_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        later = survival(silence_s + horizon_s)
        made: NDArray[np.bool_] = (later > survival(silence_s) * (1 - threshold)).numpy()
        return made

    answer, decided = _search(grid, horizon_s, below)
    deep = np.flatnonzero(survival(grid[decided][None].astype(np.float64))[0].numpy() < _LEAST_SURVIVAL)
    if len(deep):
        mixture_3CD = np.asarray(mixture_3CN)[:, :, deep]

        def surely_below(silence_s: NDArray[np.float64]) -> NDArray[np.bool_]:
            return np.array([return_chance(mixture_3CD, row, horizon_s) < threshold for row in silence_s])

        answer[deep], _ = _search(grid, horizon_s, surely_below)
    return answer


def least_silences(
    mixture_3CN: NDArray[np.floating], horizon_s: float, threshold: float
) -> NDArray[np.int64]:
    """A silence of each user that is surely shorter than what ``silence_deadlines`` says; 0 where no bound tells one.

    On a piece [a, b] the survival function lies between its values at the ends, so the chance is at least
    1 - S(a + H) / S(b). The answer is the end of the last piece up to which that is above the threshold.

    Args:
        mixture_3CN, horizon_s, threshold: as of ``silence_deadlines``, with its usual limits.
    """
    weight_CN, mean_CN, sigma_CN = torch.from_numpy(np.asarray(mixture_3CN, np.float32))
    parts = list(zip(weight_CN, mean_CN, 1 / (sigma_CN * sqrt(2)), strict=True))

    def survival(silence_s: float) -> torch.Tensor:
        total_N = torch.zeros(weight_CN.shape[1])
        for weight_N, mean_N, scale_N in parts:
            part_N = (log(silence_s) - mean_N).mul_(scale_N)
            total_N.add_(torch.erfc(part_N, out=part_N).mul_(weight_N))
        return total_N

    answer_N = np.zeros(weight_CN.shape[1], np.int64)
    going_on_N = np.ones(weight_CN.shape[1], np.bool_)
    for start, end in pairwise(_PIECES):
        at_end_N = survival(end * FIRST_SILENCE_S)
        sure_N = survival(start * FIRST_SILENCE_S + horizon_s) < at_end_N * (1 - threshold - _MARGIN)
        # Where nothing is left of S the search decides in logarithms, which this cannot foresee.
        going_on_N &= (sure_N & (at_end_N > _LEAST_SURVIVAL)).numpy()
        answer_N[going_on_N] = end * FIRST_SILENCE_S
    return answer_N


@lru_cache(maxsize=8)
def silence_grid(first_s: int = FIRST_SILENCE_S, last_s: int = LAST_SILENCE_S) -> NDArray[np.int64]:
    """Every silence that a deadline may have, rising, in whole seconds; the same for all users."""
    looks = ceil(_LOOKS_A_DOUBLING * log2(last_s / first_s))
    places = np.arange(looks * 2**_HALVINGS + 1) / (_LOOKS_A_DOUBLING * 2**_HALVINGS)
    grid = np.minimum(np.rint(first_s * 2.0**places), last_s).astype(np.int64)
    grid.flags.writeable = False
    return grid


def _search(
    grid: NDArray[np.int64], horizon_s: float, below: _Below
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The deadline of each user, and the place of the grid at which it was decided."""
    step = 2**_HALVINGS
    looks_s = grid[::step]
    below_GN = below(looks_s[:, None].astype(np.float64))
    G, N = below_GN.shape
    # A rise is waited for until the first look beyond the horizon.
    waits = min(int(np.searchsorted(looks_s, horizon_s)), G - 1)
    rises = ~below_GN[: waits + 1].all(axis=0)
    falls_GN = below_GN & (np.arange(G)[:, None] > below_GN.argmin(axis=0))
    falls = rises & falls_GN.any(axis=0)
    look = falls_GN.argmax(axis=0)
    answer = np.where(rises, 0, grid[0])
    decided = np.where(falls, look, np.where(rises, G - 1, waits)) * step

    low = (look[falls] - 1) * step
    everybody, chosen = np.zeros(N, np.int64), np.flatnonzero(falls)
    for halving in range(_HALVINGS):
        middle = low + (step >> (halving + 1))
        everybody[chosen] = middle
        above = ~below(grid[everybody][None].astype(np.float64))[0, chosen]
        low = np.where(above, middle, low)
    answer[chosen] = grid[low + 1]
    return answer, decided


def odds_deadlines(odds: ReturnOdds, base_N: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """``silence_deadlines`` of return odds: the first whole second at which the chance is below the threshold.

    Args:
        odds: of the model.
        base_N: of ``ReturnOdds.bases``.
        threshold: as of ``silence_deadlines``.
    """
    away = np.log1p(-threshold) - np.log(threshold)
    power = np.minimum((away - base_N) / odds.slope, np.log1p(LAST_SILENCE_S / DAY_S) + 1.0)
    near = np.floor(np.clip(np.expm1(power) * DAY_S, FIRST_SILENCE_S, LAST_SILENCE_S)).astype(np.int64)
    found = np.zeros(len(near), np.int64)
    for step in (2, 1, 0, -1):  # the formula and the chance itself may round a second apart
        silence = np.clip(near + step, FIRST_SILENCE_S, LAST_SILENCE_S)
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

    def least(self, threshold: float) -> NDArray[np.int64]:
        """A silence of each that is surely shorter than its deadline, as of ``least_silences``; 0 where none is known.

        Return odds have none: their deadline is a formula, which is no dearer.
        """
        if self.odds is None or self.base_N is None:
            return least_silences(self.mixture_3CN, self.horizon_s, threshold)
        return np.zeros(len(self.base_N), np.int64)

    def deadlines(self, threshold: float) -> NDArray[np.int64]:
        """After how many seconds of silence the chance falls below a threshold, as of ``silence_deadlines``."""
        if self.odds is None or self.base_N is None:
            return silence_deadlines(self.mixture_3CN, self.horizon_s, threshold)
        return odds_deadlines(self.odds, self.base_N, threshold)
