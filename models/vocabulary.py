"""Names of actions and categories as the small numbers that state rows and networks hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

DEFAULT_ACTIONS = (
    "view",
    "click",
    "search",
    "favourite",
    "cart",
    "remove",
    "checkout",
    "purchase",
    "return",
    "review",
)
OTHER = "other"
MAX_ACTIONS = 64

# Odd, so that multiplying is a bijection of uint32; any few do, one of them separates the codes.
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1, 0xD3A2646D)


def code_of(name: str) -> int:
    """The 32-bit code of a category or item name; 0 is kept for "missing".

    Source: xxHash3, 64 bits, the lower half.
    """
    return (xxhash.xxh3_64_intdigest(name.encode()) & 0xFFFFFFFF) or 1


def event_hash(event_id: bytes) -> int:
    """The 64-bit hash by which a repeated event is known; 0 is kept for an empty slot."""
    return xxhash.xxh3_64_intdigest(event_id) or 1


class ActionVocabulary:
    """The actions that a model knows; every other one is ``other``, the last code."""

    def __init__(self, actions: Sequence[str]) -> None:
        """Take the names without ``other``, at most 64, in the order of their codes."""
        if OTHER in actions or len(set(actions)) != len(actions) or not 0 < len(actions) <= MAX_ACTIONS:
            raise ValueError(
                f"actions must be 1 to {MAX_ACTIONS} different names without {OTHER!r}: {actions}"
            )
        self.names: tuple[str, ...] = (*actions, OTHER)
        self._codes = {name: code for code, name in enumerate(self.names)}

    def __len__(self) -> int:
        """Count the codes, ``other`` included."""
        return len(self.names)

    def code(self, name: str) -> int:
        """The code of a name; of an unknown one, that of ``other``."""
        return self._codes.get(name, len(self.names) - 1)


class CategoryVocabulary:
    """The frequent categories, which have an embedding and a softmax class of their own."""

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names, most frequent first. Index 0 is kept for the unseen."""
        self.names = tuple(names)
        self.codes: NDArray[np.uint32] = np.array([code_of(name) for name in names], np.uint32)
        if len(np.unique(self.codes)) != len(self.codes):
            raise ValueError("two categories of the vocabulary share a 32-bit code: leave out the rarer one")
        self._codes_by_index = np.concatenate([np.zeros(1, np.uint32), self.codes])
        self._multiplier, self._shift, self._slots = _perfect_table(self.codes)
        self._codes_by_slot = self._codes_by_index.take(self._slots)

    def __len__(self) -> int:
        """Count the names, the unseen class not included."""
        return len(self.names)

    def index_of(self, codes: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Index 1..V of each code (any shape), 0 for the unseen and the missing."""
        slots = codes * self._multiplier
        slots >>= self._shift
        found = self._slots.take(slots)
        found *= self._codes_by_slot.take(slots) == codes
        return found


def _perfect_table(codes: NDArray[np.uint32]) -> tuple[np.uint32, np.uint32, NDArray[np.int32]]:
    """A hash table without collisions: one look-up is 20 times faster than a binary search.

    Returns (multiplier, shift, slots); ``slots[(code * multiplier) >> shift]`` is the code's index.
    """
    for bits in range(12, 26):
        shift = np.uint32(32 - bits)
        for multiplier in map(np.uint32, _MULTIPLIERS):
            hashed = (codes * multiplier) >> shift
            if len(np.unique(hashed)) == len(codes):
                slots = np.zeros(1 << bits, np.int32)
                slots[hashed] = np.arange(1, len(codes) + 1)
                return multiplier, shift, slots
    raise ValueError(f"no hash table without collisions for {len(codes)} categories: lower their number")
