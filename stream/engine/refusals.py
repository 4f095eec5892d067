"""What Kafka's error codes mean for a transaction: asked again, asked elsewhere, or over."""

from __future__ import annotations

from collections.abc import Mapping

from aiokafka.errors import for_code

from stream.engine.wire import Place
from stream.errors import BrokenInvariant

# Kafka's error codes, https://kafka.apache.org/protocol#protocol_error_codes
DUPLICATE_SEQUENCE, CONCURRENT = 46, 51
FENCED = {47, 90}  # a newer epoch of this transactional id is known
ELSEWHERE = {3, 5, 6, 13, 14, 15, 16, 74, 75}  # leader or coordinator is moving, or not loaded yet
LATER = {7, 19, 20, 56, CONCURRENT}
NOT_ALLOWED = 31  # ClusterAuthorizationFailed
NAMES = {90: "ProducerFenced", 120: "TransactionAbortable"}


class TakenOver(BrokenInvariant):
    """Somebody else has started a producer of this transactional id: this process must not write any more."""


def worst(errors: Mapping[Place, int]) -> int:
    """Of an answer with an error a partition: a final one before one that may pass."""
    codes = [code for code in errors.values() if code]
    return next((code for code in codes if code not in ELSEWHERE | LATER), codes[0] if codes else 0)


def name_of(code: int) -> str:
    """Kafka's name for a code."""
    return NAMES.get(code) or f"{for_code(code).__name__} ({code})"
