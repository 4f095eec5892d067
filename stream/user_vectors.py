"""A user's vector for recommenders: what the model's trunk remembers after the user's newest event. Pure.

The topic is compacted and keyed by user, so a reader that starts today finds one vector for everybody; a user who is
erased is erased there. Of several events of a user in a micro-batch only the last one's vector is written. Vectors of
two models do not compare: each names its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec.json import encode
from numpy.typing import NDArray

from stream.errors import BrokenInvariant
from stream.outputs import EventHeaders, Headers

__all__ = ["USER_VECTOR_SCHEMA", "UserVectors"]

USER_VECTOR_SCHEMA: Final = "foreclick.user_vector.v1"


class UserVectors:
    """Renders the messages of one model.

    Args:
        model_name, model_version: of the artefact that made the vectors.
        topic_id: of the source, as readable text; it is part of ``ce_id``.
        source: CloudEvents source, a URI reference.
    """

    def __init__(self, model_name: str, model_version: str, *, topic_id: str, source: str) -> None:
        self._model = encode({"name": model_name, "version": model_version})
        self._headers = EventHeaders(USER_VECTOR_SCHEMA, "user_vector", topic_id=topic_id, source=source)

    def messages(
        self,
        user_ids: Sequence[str],
        event_time_ms: NDArray[np.int64],
        partitions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        vectors: NDArray[np.float16],
    ) -> list[tuple[bytes, bytes, Headers]]:
        """Key, value and headers of M users' vectors (M, H), rounded to 4 decimals.

        Args:
            user_ids, event_time_ms, partitions, offsets: of the event after which each vector stands.

        Raises:
            BrokenInvariant: a vector is NaN or infinite.
        """
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            at = broken[0]
            raise BrokenInvariant(
                f"The vector after the event at partition {partitions[at]}, offset {offsets[at]} is not finite."
            )
        # Adding 0 makes a plain 0.0 of -0.0.
        rounded = (np.round(vectors.astype(np.float64), 4) + 0.0).tolist()
        head = b'{"schema":"%b","user_id":' % USER_VECTOR_SCHEMA.encode()
        tail = b',"model":%b,"dimension":%d,"vector":' % (self._model, vectors.shape[1])
        headers = self._headers.of(user_ids, event_time_ms, partitions, offsets)
        values = (
            b'%b%b,"event_time_ms":%d%b%b}' % (head, encode(user), time_ms, tail, encode(vector))
            for user, time_ms, vector in zip(user_ids, event_time_ms.tolist(), rounded, strict=True)
        )
        return list(zip([user.encode() for user in user_ids], values, headers, strict=True))
