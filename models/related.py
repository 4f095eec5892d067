"""Which category follows which: counted on training users, the beginning of what the category head learns.

People look at a chair after a table. A trunk of 64 units learns little of hundreds of categories from a small log;
counted, what follows what is there from the first epoch on, for categories that a user has not looked at before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.columns import Columns, take
from models.vocabulary import CategoryVocabulary

# Transitions' worth of the shop's shares in what follows one category. Of 5, 20 and 60 the last found most of the
# categories that users turned to for the first time.
MASS = 60.0
PARTS = 5


@dataclass(frozen=True)
class RelatedCategories:
    """Logs for V + 1 vocabulary indices, 0 = unseen or none.

    ``log_share``: float32 (V + 1,), of each category among all events. ``log_lift``: float32 (V + 1, V + 1), how much
    likelier than that the column's category is after the row's; 0 in the row of index 0.
    """

    log_share: NDArray[np.float32]
    log_lift: NDArray[np.float32]


def related_categories(fit: Columns, categories: CategoryVocabulary) -> RelatedCategories:
    """Count what follows what among the training users, whose events are contiguous and in order."""
    index_N = categories.index_of(fit["category"])
    share = _share(fit, index_N, len(categories) + 1)
    return RelatedCategories(np.log(share).astype(np.float32), _log_lift(fit, index_N, share))


def lifts_without_own(fit: Columns, categories: CategoryVocabulary) -> NDArray[np.float32]:
    """The lifts again, (F, V + 1, V + 1), for users with row % F = f counted on all others.

    A user who learns from a table that holds what the same user did next learns to believe it too much.
    """
    index_N = categories.index_of(fit["category"])
    share = _share(fit, index_N, len(categories) + 1)
    tables = [
        _log_lift(take(fit, others), index_N[others], share) for others in _without_each_part(fit["row"])
    ]
    return np.stack(tables)


def _share(fit: Columns, index_N: NDArray[np.integer], size: int) -> NDArray[np.float64]:
    count = np.bincount(index_N[fit["category"] != 0], minlength=size) + 1
    return np.asarray(count / count.sum(), np.float64)


def _without_each_part(row_N: NDArray[np.integer]) -> Iterator[NDArray[np.bool_]]:
    for part in range(PARTS):
        yield row_N % PARTS != part


def _log_lift(fit: Columns, index_N: NDArray[np.integer], share: NDArray[np.float64]) -> NDArray[np.float32]:
    size, named = len(share), fit["category"] != 0
    # Steps to another category only: staying and returning are the pointer's to tell.
    step = (fit["row"][1:] == fit["row"][:-1]) & named[1:] & named[:-1] & (index_N[1:] != index_N[:-1])
    pair = index_N[:-1][step].astype(np.int64) * size + index_N[1:][step]
    followed = np.bincount(pair, minlength=size * size).reshape(size, size).astype(np.float64)
    lift = (followed / share + MASS) / (followed.sum(axis=1, keepdims=True) + MASS)
    lift[0] = 1.0
    return np.log(lift).astype(np.float32)
