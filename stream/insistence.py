"""Visits of an item to which a user comes back again and again, with other things in between. Pure.

Hardly anybody does so: of honest visits about one in a thousand is the fifth return within the last 32 events. Those
who want two items to be recommended together do it all the time, and each return looks like any other click. So the
clicks stage tells the second stage of the fifth return alone, under its item.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["RETURNS", "insistent_visits"]

#: The return that is told; the first coming is none.
RETURNS: Final = 5


def insistent_visits(columns: Mapping[str, np.ndarray]) -> NDArray[np.bool_]:
    """Which of M events begin their user's fifth return to an item, as far as the window remembers.

    Args:
        columns: of ``stream.sessions.Folded``; those that are looked at are ``item``, ``repeat_item`` and
            ``window_item``, whose last entry is the event itself.
    """
    found = columns["repeat_item"].copy()
    places = np.flatnonzero(found)
    window = columns["window_item"][places]
    here = window == columns["item"][places][:, None]
    # Several events at the item one after the other are one stay.
    begins = here.copy()
    begins[:, 1:] &= ~here[:, :-1]
    found[places] = begins[:, -1] & (begins.sum(axis=1) == RETURNS + 1)
    return found
