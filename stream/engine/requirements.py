"""What the engine relies on beyond the public interfaces of Faust and aiokafka, checked at start.

The versions are pinned in requirements.lock; somebody who installs others gets one clear line instead of lost data.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version

import aiokafka
import faust
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from faust.app.base import BootStrategy

from stream.errors import Unsupported

PINNED = {"faust-streaming": "0.15.3", "aiokafka": "0.14.0"}

# transaction.py sends its own requests through these, and seals record batches that this builds.
OF_THE_CLIENT = (
    "bootstrap",
    "set_topics",
    "send",
    "coordinator_lookup",
    "force_metadata_update",
    "get_random_node",
    "close",
)


def check() -> None:
    """Compare what is installed with what was read and tested.

    Raises:
        Unsupported: another version, or something relied on is gone.
    """
    for package, pinned in PINNED.items():
        installed = version(package)
        if installed != pinned:
            raise Unsupported(
                f"{package} {installed} is installed, but exactly once was proven with {pinned} only. "
                "Install the locked versions: `make` does it, or `pip install --require-hashes -r requirements.lock`."
            )
    relied_on = {
        "faust.App.BootStrategy.server": inspect.isgeneratorfunction(BootStrategy.server)
        or callable(getattr(BootStrategy, "server", None)),
        "faust BootStrategy.enable_kafka_consumer": hasattr(BootStrategy, "enable_kafka_consumer"),
        "faust.App.BootStrategy": faust.App.BootStrategy is BootStrategy,
        **{f"aiokafka AIOKafkaClient.{name}": hasattr(AIOKafkaClient, name) for name in OF_THE_CLIENT},
        "aiokafka ClusterMetadata.leader_for_partition": hasattr(ClusterMetadata, "leader_for_partition"),
        "aiokafka DefaultRecordBatchBuilder.set_producer_state": hasattr(
            DefaultRecordBatchBuilder, "set_producer_state"
        ),
        "aiokafka AIOKafkaConsumer.highwater": hasattr(aiokafka.AIOKafkaConsumer, "highwater"),
    }
    missing = [name for name, there in relied_on.items() if not there]
    if missing:
        raise Unsupported(
            f"Not found in the installed libraries: {', '.join(missing)}. Install the locked versions."
        )
