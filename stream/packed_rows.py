"""Rows of detectors and of labels as bytes: a version, then MessagePack of the fields in their order."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from stream.errors import DamagedRow

__all__ = ["PackedRows"]

T = TypeVar("T")


class PackedRows(Generic[T]):
    """Rows of one type.

    Args:
        kind: the struct that a row holds.
        version: of its fields; rows of another are refused.
        name: of one row in a message, such as ``A shop's row``.
    """

    def __init__(self, kind: type[T], version: int, name: str) -> None:
        self._version, self._name = version, name
        self._begins = bytes([version])
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Any = msgspec.msgpack.Decoder(kind).decode

    def packed(self, row: T) -> bytes:
        """For the store and its changelog."""
        return self._begins + self._encode(row)

    def read(self, raw: bytes) -> T:
        """What ``packed`` wrote.

        Raises:
            DamagedRow: another version, or no row at all.
        """
        if raw[:1] != self._begins:
            raise DamagedRow(
                f"{self._name} starts with {raw[:1]!r}; this build reads version {self._version}. Use the build that "
                "wrote it, or let the changelog restore the store."
            )
        try:
            row: T = self._decode(memoryview(raw)[1:])
        except msgspec.DecodeError as error:
            raise DamagedRow(
                f"{self._name} of {len(raw)} bytes is damaged: {error}. Restore the store."
            ) from None
        return row
