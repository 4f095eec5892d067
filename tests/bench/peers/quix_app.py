"""The work as a Quix Streams application: a StreamingDataFrame with one stateful function.

    python -m tests.bench.peers.quix_app SETTINGS_JSON

As its documentation has it: bytes in and out, bytes in the state (RocksDB with a changelog topic), the source position
from the message's context, headers set on the frame, checkpoints every ``commit_interval_s``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from tests.bench.parent import end_with_parent
from tests.bench.peers.event_step import EventStep, Stepped
from tests.bench.peers.settings import PeerSettings


def scorer(step: EventStep, context: Callable[[], Any]) -> Callable[[bytes, Any], Stepped | None]:
    """The stateful function: a value and the user's state give a prediction.

    Args:
        context: gives partition and offset of the message at hand.
    """

    def score(value: bytes, state: Any) -> Stepped | None:
        message = context()
        stepped = step(value, state.get_bytes("row"), message.partition, message.offset)
        if stepped is not None:
            state.set_bytes("row", stepped.row)
        return stepped

    return score


def main() -> None:
    """Run the application in this process."""
    from quixstreams import Application, message_context

    end_with_parent()
    settings = msgspec.json.decode(sys.argv[1], type=PeerSettings)
    app = Application(
        broker_address=settings.bootstrap_servers,
        consumer_group=settings.app_id,
        auto_offset_reset="earliest",
        commit_interval=settings.commit_interval_s,
        consumer_extra_config={"session.timeout.ms": int(settings.session_timeout_s * 1000)},
        state_dir=settings.data_dir,
        loglevel="WARNING",
        processing_guarantee="exactly-once" if settings.exactly_once else "at-least-once",
    )
    clicks = app.topic(settings.clicks_topic, value_deserializer="bytes")
    predictions = app.topic(settings.predictions_topic, value_serializer="bytes")
    frame = app.dataframe(clicks)
    frame = frame.apply(scorer(EventStep(settings), message_context), stateful=True)
    frame = frame.filter(lambda stepped: stepped is not None)
    frame = frame.set_headers(lambda stepped, key, timestamp, headers: list(stepped.headers.items()))
    frame = frame.apply(lambda stepped: stepped.value)
    frame.to_topic(predictions)
    app.run()


if __name__ == "__main__":
    main()
