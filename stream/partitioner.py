"""The partition of a key, as Kafka's Java clients choose it and as ``foreclick replay`` does."""

from __future__ import annotations

from typing import Final

__all__ = ["murmur2", "partition_of"]

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_WORD: Final = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """The 32 bits of MurmurHash2 with Kafka's seed.

    Source: Austin Appleby's MurmurHash2; ``org.apache.kafka.common.utils.Utils.murmur2``.
    """
    length = len(key)
    h = (_SEED ^ length) & _WORD
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * _M & _WORD
        h = (h * _M & _WORD) ^ ((k ^ k >> 24) * _M & _WORD)
    if length > whole:
        h = (h ^ int.from_bytes(key[whole:], "little")) * _M & _WORD
    h = (h ^ h >> 13) * _M & _WORD
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """Where a record with this key goes in a topic of so many partitions."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
