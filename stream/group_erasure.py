"""Users who are to leave the rows of groups: a tombstone names a user, and no index says in which rows he is.

Each partition of groups is told every tombstone. It goes through all of its rows in turns, some in each micro-batch,
for some users at once, and remembers in reserved rows for whom it has not come to the end yet. A pass that a restart
cuts off begins anew. Rows that are folded meanwhile are looked at as they are written, so at the end of a pass none
holds any of its users by what they did before; what somebody does after the own tombstone may leave with it.

Partitions tell each other of meetings, so one that is behind may name a user to one that has forgotten that user. At
the end of its pass each therefore tells all of them once more: behind that nobody names the user any longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from stream.stage import Row

__all__ = ["AGAIN_KEY", "ERASING_KEY", "Erasures", "Page"]

#: Reserved rows of users who are still to be erased, for the first and for the second time: these prefixes and the id.
ERASING_KEY: Final = b"\0e"
AGAIN_KEY: Final = b"\0f"
MOST_USERS: Final = 64  # in one pass
MOST_ROWS: Final = 2048  # in one micro-batch

Page = Callable[[bytes, int], list[tuple[bytes, bytes]]]


class Erasures:
    """The users whom one partition of groups forgets, and how far it has come.

    Args:
        waiting: keys of the reserved rows of both kinds, as the store remembers them.
        page: rows from a key on, at most so many, in order of keys.
    """

    def __init__(self, waiting: Iterable[bytes], page: Page) -> None:
        #: Whether it is the second time, by user.
        self._waiting: dict[bytes, bool] = {}
        for key in waiting:
            self.add(key[len(ERASING_KEY) :], again=key.startswith(AGAIN_KEY))
        self._page = page
        self._users: list[bytes] = []
        self._next = b"\1"

    @property
    def pending(self) -> bool:
        """Whether anybody is left to be erased."""
        return bool(self._waiting)

    @property
    def under_way(self) -> bool:
        """Whether rows are to be written without the users of a pass."""
        return bool(self._users)

    def add(self, user: bytes, *, again: bool = False) -> list[Row]:
        """Take note of a tombstone; the rows to remember it by, none when it is known.

        Args:
            again: another partition has come to its end with this user.
        """
        known = self._waiting.get(user)
        if known is not None and (again or not known):
            return []
        self._waiting[user] = again
        rows: list[Row] = [((AGAIN_KEY if again else ERASING_KEY) + user, b"1")]
        return [*rows, (AGAIN_KEY + user, None)] if known else rows

    def begin(self) -> None:
        """Begin a pass, if none is under way."""
        if not self._users and self._waiting:
            self._users, self._next = list(islice(self._waiting, MOST_USERS)), b"\1"

    def named_in(self, *parts: bytes) -> set[str]:
        """Those of this pass whose ids the bytes of a group's key or row hold; some may be parts of other words."""
        return {user.decode() for user in self._users if any(user in part for part in parts)}

    def turn(self) -> list[tuple[bytes, bytes]]:
        """The next rows of the store to look at."""
        if not self._users:
            return []
        rows = self._page(self._next, MOST_ROWS)
        self._next = rows[-1][0] + b"\0" if len(rows) == MOST_ROWS else b""
        return rows

    def end(self) -> tuple[list[Row], list[bytes]]:
        """When all rows were looked at: what removes the users of this pass from those who wait, and whom to tell of.

        Only those whom a tombstone named are told of again, so that this ends.
        """
        if not self._users or self._next:
            return [], []
        done, self._users = self._users, []
        again = {user: self._waiting.pop(user) for user in done}
        rows: list[Row] = [
            ((AGAIN_KEY if second else ERASING_KEY) + user, None) for user, second in again.items()
        ]
        return rows, [user for user, second in again.items() if not second]
