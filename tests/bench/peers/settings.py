"""What every peer is told; one JSON object on its command line, so that the environments share nothing but files."""

from __future__ import annotations

import msgspec


class PeerSettings(msgspec.Struct):
    """Topics, model and limits of one entrant.

    Args:
        topic_id: of the source, as hexadecimal text.
        source: CloudEvents source of the predictions.
        exactly_once: ask the framework for its strongest guarantee, where it has one.
        commit_interval_s: how often offsets, checkpoints or snapshots are made; the same for all who make them.
        session_timeout_s: after which the group gives a dead member's partitions to its successor.
        jars: folder with further jars, for those who need any.
    """

    bootstrap_servers: str
    app_id: str
    clicks_topic: str
    topic_id: str
    predictions_topic: str
    dead_letters_topic: str
    partitions: int
    source: str
    model: str
    data_dir: str
    exactly_once: bool = False
    commit_interval_s: float = 1.0
    session_timeout_s: float = 8.0
    jars: str = ""
