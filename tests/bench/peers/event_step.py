"""One event through the model, with the user's row as bytes before and after: what every peer's function calls.

Quix Streams, Bytewax and PyFlink run this, and the stock Faust agent the same steps; only what is around it differs.
It needs torch, numpy, scipy, msgspec, xxhash and safetensors, and nothing of the pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from models.registry import load_artefact
from tests.bench.peers.settings import PeerSettings
from tests.bench.stock_clicks import StockClicks, decode


class Stepped(NamedTuple):
    """The row to keep, and the prediction."""

    row: bytes
    value: bytes
    headers: dict[str, bytes]


class EventStep:
    """Decode, fold, score and render one event at a time, in the calling thread."""

    def __init__(self, settings: PeerSettings):
        # The threads of a framework and those of torch would take turns on the same cores.
        torch.set_num_threads(1)
        self._work = StockClicks(
            load_artefact(Path(settings.model)),
            settings.clicks_topic,
            bytes.fromhex(settings.topic_id),
            settings.source,
        )

    def __call__(self, value: bytes, row: bytes | None, partition: int, offset: int) -> Stepped | None:
        """What to keep and to send for one record; None for a repeat or an event that is too late.

        Raises:
            msgspec.DecodeError: the value is no event. The bench sends none of those, so no peer has dead letters.
        """
        work = self._work
        folded = work.fold(decode(value), row, partition, offset)
        if folded is None:
            return None
        with torch.inference_mode():
            answer = work.score(folded)
        prediction, headers = work.render(folded, answer, partition, offset)
        return Stepped(work.pack(folded), prediction, headers)
