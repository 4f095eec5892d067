"""What the engine relies on beyond the public interfaces of Faust and aiokafka, checked at start.

The versions are pinned in requirements.lock; somebody who installs others gets one clear line instead of lost data.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version

import aiokafka
import faust
from aiokafka.producer import sender
from aiokafka.producer.message_accumulator import BatchBuilder
from faust.app.base import BootStrategy

from stream.errors import Unsupported

PINNED = {"faust-streaming": "0.15.3", "aiokafka": "0.14.0"}

TRANSACTION_BACKOFF_S = 0.005


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
        "aiokafka.producer.sender.BACKOFF_OVERRIDE": hasattr(sender, "BACKOFF_OVERRIDE"),
        "aiokafka send_batch": hasattr(aiokafka.AIOKafkaProducer, "send_batch"),
        "aiokafka send_offsets_to_transaction": hasattr(
            aiokafka.AIOKafkaProducer, "send_offsets_to_transaction"
        ),
        "aiokafka BatchBuilder.record_count": hasattr(BatchBuilder, "record_count"),
        "aiokafka AIOKafkaConsumer.highwater": hasattr(aiokafka.AIOKafkaConsumer, "highwater"),
    }
    missing = [name for name, there in relied_on.items() if not there]
    if missing:
        raise Unsupported(
            f"Not found in the installed libraries: {', '.join(missing)}. Install the locked versions."
        )


def quicken_transactions() -> None:
    """Poll the transaction coordinator every 5 ms after CONCURRENT_TRANSACTIONS instead of every 20.

    The broker answers so while it writes the markers of the transaction before. Asking every 2 ms is no better where
    worker and broker share two cores: the questions themselves delay the answer.
    """
    sender.BACKOFF_OVERRIDE = TRANSACTION_BACKOFF_S
