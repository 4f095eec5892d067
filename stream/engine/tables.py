"""The engine's rows as a Faust table that agents and web views read: ``table[user]``.

It is not registered with ``app.tables``: that would hand the changelog to Faust's recovery, which loses records. It
answers for the partitions that this worker owns and is read-only, because a row that did not come out of a
transaction would contradict the changelog for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import faust

from stream.engine.service import Engine
from stream.engine.store import Store


class StateTable(faust.Table):
    """A read-only view.

    Args:
        read: from the stored bytes to what a reader sees, told until when that user's timers were said.
    """

    def __init__(self, app: faust.App, engine: Engine, read: Callable[[bytes, int], Any], **options: Any):
        super().__init__(app, **options)
        self._engine = engine
        self._read = read

    def _stores(self) -> Iterator[Store]:
        return (part.store for part in self._engine.open_partitions() if part.store.is_open)

    def _row(self, key: str) -> tuple[bytes, int] | None:
        """The stored bytes, and until when this user's timers were said."""
        encoded = key.encode()
        found = self._engine.row(encoded)
        if found is None:
            return None
        part, raw = found
        return raw, part.store.said_before().ends_ms(encoded)

    def __getitem__(self, key: str) -> Any:
        row = self._row(key)
        if row is None:
            raise KeyError(key)
        return self._read(*row)

    def get(self, key: str, default: Any = None) -> Any:
        row = self._row(key)
        return default if row is None else self._read(*row)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._row(key) is not None

    def __len__(self) -> int:
        return sum(store.count() for store in self._stores())

    def __iter__(self) -> Iterator[str]:
        for store in self._stores():
            yield from (key.decode() for key, _ in store.items())

    def keys(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self)

    def items(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        for store in self._stores():
            said_before = store.said_before()
            for key, raw in store.items():
                yield key.decode(), self._read(raw, said_before.ends_ms(key))

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        return (value for _, value in self.items())

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("The state table is read-only: rows change only inside the engine's transactions.")

    def __delitem__(self, key: str) -> None:
        raise TypeError("The state table is read-only: send a record with a null value to erase a user.")
