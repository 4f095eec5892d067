"""What a partition remembers beside its users' rows: names of categories, and the vocabularies of the models.

Rows hold codes. A category's code is made from its name, so the name must be remembered to be told again; an action's
code is its place in the vocabulary of the model that wrote the row, so rows of another model are read by that one's
vocabulary. Both travel as reserved rows in the transactions that first need them, so a worker that takes the partition
over knows them too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.vocabulary import ActionVocabulary, code_of
from stream.events import Event
from stream.stage import Row

NAME_KEY: Final = b"\0c"  # + u32 code: the name of a category
MODEL_KEY: Final = b"\0m"  # + u64 fingerprint: the vocabularies of a model that wrote rows here
MAX_NAMES: Final = (
    100_000  # a partition; later categories stay without a name and are left out of next_category
)
LONGEST_NAME: Final = 256  # characters; a longer one would not be shown, see stream/rendering.py
_CODE = struct.Struct("<I")
_FINGERPRINT = struct.Struct("<Q")


class PartitionNames:
    """Names by code of one partition.

    Args:
        entries: the reserved rows of its store, both kinds.

    Attributes:
        categories: names by code: those of all models that were met, and those seen in events.
        actions: names by code, a vocabulary for each model's fingerprint.
    """

    def __init__(self, entries: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.categories: dict[int, str] = {}
        self._untold: list[int] = []
        self.actions: dict[int, tuple[str, ...]] = {}
        for key, value in entries:
            if key.startswith(NAME_KEY):
                self._name(_CODE.unpack(key[len(NAME_KEY) :])[0], value.decode())
            else:
                held = json.loads(value)
                self._meet(_FINGERPRINT.unpack(key[len(MODEL_KEY) :])[0], held["actions"], held["categories"])

    def meet(self, artefact: Any) -> list[Row]:
        """Remember the vocabularies of a model that is about to write rows; the row that makes others remember."""
        if artefact.fingerprint in self.actions:
            return []
        actions, categories = artefact.actions.names, artefact.categories.names
        self._meet(artefact.fingerprint, actions, categories)
        held = {
            "name": artefact.name,
            "version": artefact.version,
            "actions": actions,
            "categories": categories,
        }
        return [(MODEL_KEY + _FINGERPRINT.pack(artefact.fingerprint), json.dumps(held).encode())]

    def _meet(self, fingerprint: int, actions: Sequence[str], categories: Sequence[str]) -> None:
        self.actions[fingerprint] = tuple(actions)
        for name in categories:
            self._name(code_of(name), name)

    def _name(self, code: int, name: str) -> None:
        if code not in self.categories:
            self._untold.append(code)
        self.categories[code] = name

    def learn(self, codes: NDArray[np.uint32], places: np.ndarray, events: Sequence[Event]) -> list[Row]:
        """Remember the names of categories not seen before; the rows that make the changelog remember them too.

        Args:
            codes: of the categories, one for each place; 0 is none.
            places: indices into ``events``.
        """
        new = set(codes.tolist()) - self.categories.keys() - {0}
        learned: list[Row] = []
        for code in sorted(new):
            name = events[places[int(np.argmax(codes == code))]].category_id
            if name is not None and len(name) <= LONGEST_NAME and len(self.categories) < MAX_NAMES:
                self._name(code, name)
                learned.append((NAME_KEY + _CODE.pack(code), name.encode()))
        return learned

    def tell(self, names: dict[int, str]) -> None:
        """Add the names that were not told yet to those of other partitions; a code keeps the name it has there."""
        for code in self._untold:
            names.setdefault(code, self.categories[code])
        self._untold.clear()

    def speak_alike(self, actions: ActionVocabulary) -> bool:
        """Whether every model that wrote rows here had this vocabulary of actions."""
        return all(names == actions.names for names in self.actions.values())

    def action_codes(self, fingerprint: int, actions: ActionVocabulary) -> NDArray[np.uint8] | None:
        """The code here of each action code of another model's rows; None for a model that was never met."""
        names = self.actions.get(fingerprint)
        return None if names is None else np.array([actions.code(name) for name in names], np.uint8)
