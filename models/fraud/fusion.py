"""Terms of different kinds as one score: how rare each is among users like this one, and all of them together.

    term ──► nats of its tail in the reference, for users with as many events ──► the rarest, or the sum ──► score

The reference is a population of users other than those judged. It is not labelled, and may hold farms; so users whom
coincidence would give less than once among all of them are left out of it, a few times over, as one does with
outliers. Beyond what the reference shows, a tail goes on as an exponential.

One term that is very rare is enough, and so are several that are somewhat rare together: half of the weight has the
sum of all nats, whose own tail is the reference's, so that terms which honest users have together count less. What
habits say of somebody who buys much is one and the same and counts once, and buying much proves no coordination.

Source: the combination is the harmonic mean p-value (Wilson, 2019), valid when the terms depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.fraud.watch import GROUP_TERMS, TERMS

__all__ = ["BUCKET_EDGES", "HEAVY_BUYERS", "Reference", "cross_fitted", "life_tail", "once", "reference_of"]

BUCKET_EDGES = (4, 8, 16, 32, 64, 128, 256)
_MEMBERS = 300
#: Quantile at which a tail begins: at first one that a fifth of outsiders does not move, then closer to the tail.
_FIRST_CUT, _CUT = 0.75, 0.90
_TRIMS = 4
_MOST_SCALE, _LEAST_SCALE = 2.5, 0.4
_LOG2 = log(2.0)
_HASTE = TERMS.index("haste")
_BUYING = [TERMS.index(term) for term in ("orders_at_once", "same_order_again", "hardly_looks")]
#: One user in so many buys much for reasons of their own; that somebody buys more still says little more.
HEAVY_BUYERS = 30


def bucket_of(events: NDArray) -> NDArray[np.int64]:
    """The bucket of a number of events: below 4, 4-7, 8-15, ... 256 and more."""
    return np.searchsorted(BUCKET_EDGES, events, side="right")


@dataclass(frozen=True)
class Reference:
    """What is usual, (B, T) each: cut, share of users above it, scale of the tail above it; and of the fused nats."""

    cut: NDArray[np.float64]
    share: NDArray[np.float64]
    scale: NDArray[np.float64]
    summed: NDArray[np.float64]  # cut, share, scale of the sum of nats
    users: int  # in the reference
    fused: NDArray[np.float64]  # cut, share, scale of the fused nats over a user's life

    @classmethod
    def fit(cls, events: NDArray, values: NDArray, final: NDArray, user: NDArray) -> Reference:
        """Learn from rows of a reference population.

        Args:
            events: of the row's user until then, (R,).
            values: terms, (R, T).
            final: whether it is the user's last row in its bucket, (R,).
            user: codes, (R,).
        """
        kept = np.ones(len(events), np.bool_)
        n_users = max(2, len(np.unique(user)))
        reference = cls._fit_terms(events[final], values[final], _FIRST_CUT, n_users)
        for _ in range(_TRIMS):
            together = reference.terms(events, values)[:, sorted(GROUP_TERMS)].max(axis=1)
            worst = np.zeros(user.max() + 1)
            np.maximum.at(worst, user, together)
            trimmed = kept & (worst[user] <= log(n_users) + 1.0)
            reference = cls._fit_terms(events[final & trimmed], values[final & trimmed], _CUT, n_users)
            if (trimmed == kept).all():
                break
            kept = trimmed
        nats = reference.nats(events, values)
        worst = np.zeros(user.max() + 1)
        np.maximum.at(worst, user, nats)
        return replace(reference, fused=np.array(life_tail(worst[np.unique(user)], log(n_users) + 1.0)))

    @classmethod
    def _fit_terms(cls, events: NDArray, values: NDArray, at: float, users: int) -> Reference:
        bucket = bucket_of(events)
        tails = []
        for b in range(len(BUCKET_EDGES) + 1):
            for reach in range(len(BUCKET_EDGES) + 1):
                chosen = np.flatnonzero(np.abs(bucket - b) <= reach)
                if len(chosen) >= _MEMBERS:
                    break
            tails.append([_tail(values[chosen, t], at, t in GROUP_TERMS) for t in range(values.shape[1])])
        cut, share, scale = np.moveaxis(np.array(tails), 2, 0)
        draft = cls(cut, share, scale, np.array([0.0, 0.5, 1.0]), users, np.zeros(3))
        sums = _sum(once(draft.terms(events, values)))
        return replace(draft, summed=np.array(_tail(sums, at, True)))

    def nats(self, events: NDArray, values: NDArray) -> NDArray[np.float64]:
        """Fused nats of rows, (R,): -log of the harmonic mean of the tail chances of terms and sum."""
        return self.fuse(once(self.terms(events, values)))

    def fuse(self, each: NDArray) -> NDArray[np.float64]:
        """Fused nats, (R,), of the nats of terms, (R, any), with what says the same counted ``once``."""
        together = _nats(_sum(each), *self.summed)
        most = np.maximum(each.max(axis=1), together)
        return most + np.log(0.5 * np.exp(each - most[:, None]).mean(axis=1) + 0.5 * np.exp(together - most))

    def terms(self, events: NDArray, values: NDArray) -> NDArray[np.float64]:
        """Nats of each term, (R, T): -log of the chance that a user of the reference has as much."""
        bucket = bucket_of(events)
        nats = _nats(values, self.cut[bucket], self.share[bucket], self.scale[bucket])
        # A habit rarer than one in the whole reference is not known to be rarer still.
        most = log(self.users)
        own = [term for term in range(nats.shape[1]) if term not in GROUP_TERMS]
        nats[:, own] = _bounded(nats[:, own], most)
        return nats

    def level(self, nats: NDArray) -> NDArray[np.float64]:
        """Score in 0..1 of fused nats: .99 says one user in a hundred of the reference ever looks as odd."""
        cut, share, scale = self.fused
        return scores_of(_nats(nats, cut, share, scale))

    def as_dict(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return {name: np.round(getattr(self, name), 6).tolist() for name in self.__dataclass_fields__} | {
            "terms": list(TERMS)
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Reference:
        """Read what ``as_dict`` wrote.

        Raises:
            ValueError: it is of a build with other terms.
        """
        if values["terms"] != list(TERMS):
            raise ValueError(f"fraud terms {values['terms']}, this build has {list(TERMS)}")
        tables = {
            name: np.array(values[name], np.float64) for name in cls.__dataclass_fields__ if name != "users"
        }
        return cls(**tables, users=int(values["users"]))


def _bounded(nats: NDArray, most: float) -> NDArray[np.float64]:
    """Nats, of which those beyond ``most`` hardly count."""
    return np.minimum(nats, most + np.log1p(np.maximum(nats - most, 0.0)))


def once(nats: NDArray) -> NDArray[np.float64]:
    """Nats of TERMS, (R, T), with what they say of somebody who buys much, in haste or not, counted once.

    The rarest of these habits stays, the others are 0; those of orders are bounded, haste is not.
    """
    counted = nats.copy()
    counted[:, _BUYING] = _bounded(nats[:, _BUYING], log(HEAVY_BUYERS))
    alike = [_HASTE, *_BUYING]
    rarest = counted[:, alike].argmax(axis=1)
    counted[:, alike] *= rarest[:, None] == np.arange(len(alike))
    return counted


def life_tail(lives: NDArray, most: float) -> tuple[float, float, float]:
    """Cut, share above it and scale of the tail of fused nats, as if nobody attacked.

    Beyond ``most`` are attackers, but honest users too: leaving them out makes the tail of the others look short. So
    what is up to there is fitted as an exponential that is cut off there (maximum likelihood); it also says how many
    honest users are beyond.
    """
    usual = lives[lives <= most]
    if len(usual) < 2:
        return 0.0, 0.5, 1.0
    cut = float(np.quantile(usual, _FIRST_CUT))
    above = usual[usual > cut] - cut
    if not len(above):
        return cut, 1.0 / (len(usual) + 2.0), 1.0
    # The mean of an exponential that ends at ``length`` grows with its scale.
    length, least, greatest = most - cut, _LEAST_SCALE, _MOST_SCALE
    for _ in range(40):
        scale = (least + greatest) / 2
        if scale - length / np.expm1(length / scale) < above.mean():
            least = scale
        else:
            greatest = scale
    honest = (len(above) + 1.0) / -np.expm1(-length / scale)
    return cut, float(honest / (len(usual) - len(above) + honest + 1.0)), scale


def _sum(nats: NDArray) -> NDArray[np.float64]:
    """What the terms say together; the nat that any term may well have is not counted."""
    return np.maximum(nats - 1.0, 0.0).sum(axis=1)


def scores_of(nats: NDArray) -> NDArray[np.float64]:
    """1 - p; below one in ten thousand it approaches 1 slowly, so that scores stay apart."""
    rare = log(1e4)
    beyond = np.maximum(nats - rare, 0.0)
    return np.where(beyond > 0, 1.0 - 1e-4 / (1.0 + beyond), -np.expm1(-np.maximum(nats, 0.0)))


def _tail(values: NDArray, at: float, in_nats: bool) -> tuple[float, float, float]:
    """Cut, share above it, and scale of an exponential tail; robust against some who do not belong."""
    if not len(values):
        return 0.0, 0.5, 1.0
    median, cut = (float(quantile) for quantile in np.quantile(values, (0.5, at)))
    above = values[values > cut]
    share = (len(above) + 1.0) / (len(values) + 2.0)
    scale = float(np.median(above) - cut) / _LOG2 if len(above) >= 5 and at == _CUT else 0.0
    scale = max(scale, (cut - median) / log(0.5 / (1 - at)), _LEAST_SCALE)
    if in_nats:
        # Evidence in nats has scale 1 by itself, some more because people share tastes. A larger one is not theirs:
        # where attackers are a seventh of all, the tail is their own, and hides the weaker half of them.
        scale = min(max(scale, 1.0 if at == _CUT else 2.0), _MOST_SCALE)
    return cut, share, scale


def _nats(values: NDArray, cut: NDArray, share: NDArray, scale: NDArray) -> NDArray[np.float64]:
    above = -np.log(share) + (values - cut) / scale
    below = -np.log(share) * np.where(cut > 0, np.maximum(values, 0) / np.where(cut > 0, cut, 1.0), 0.0)
    return np.where(values > cut, above, below)


def cross_fitted(
    user: NDArray, events: NDArray, values: NDArray, fold_U: NDArray, folds: int = 5
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Reference]]:
    """Fused nats and score of every row, each by the reference of the users of other folds.

    Args:
        user: of each row, (R,); rows in time order.
        events: of the user until then, (R,).
        values: terms, (R, T).
        fold_U: of each user.
    """
    final = _last_in_bucket(user, events)
    nats, score = np.zeros(len(user)), np.zeros(len(user))
    references = []
    for number in range(folds):
        others = fold_U[user] != number
        reference = Reference.fit(events[others], values[others], final[others], user[others])
        own = ~others
        nats[own] = reference.nats(events[own], values[own])
        score[own] = reference.level(nats[own])
        references.append(reference)
    return nats, score, references


def reference_of(user: NDArray, events: NDArray, values: NDArray) -> Reference:
    """The reference that all users of the rows make; arguments as of ``cross_fitted``."""
    return Reference.fit(events, values, _last_in_bucket(user, events), user)


def _last_in_bucket(user: NDArray, events: NDArray) -> NDArray[np.bool_]:
    """Whether a row is its user's last one with a number of events in the same bucket."""
    key = user * (len(BUCKET_EDGES) + 1) + bucket_of(events)
    last = np.zeros(len(user), np.bool_)
    _, first_from_behind = np.unique(key[::-1], return_index=True)
    last[len(user) - 1 - first_from_behind] = True
    return last
