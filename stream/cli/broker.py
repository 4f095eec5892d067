"""``foreclick broker``: a real Kafka on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stream.cli.options import Json, finish

if TYPE_CHECKING:
    from stream.broker import Broker, BrokerStatus

DEFAULT_PORT = 9092  # Kafka's own, and the default of every other command

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="What the broker keeps; ~/.local/state/foreclick/broker by default."),
]


def register(app: typer.Typer) -> None:
    """Add ``broker start``, ``broker stop`` and ``broker status``."""
    broker = typer.Typer(
        no_args_is_help=True,
        help="A real Kafka on this machine: from Docker, else from Java with Maven.",
        epilog="Example: foreclick broker start; foreclick broker status; foreclick broker stop",
    )
    broker.command(epilog="Example: foreclick broker start --port 19092")(start)
    broker.command(epilog="Example: foreclick broker stop")(stop)
    broker.command(epilog="Example: foreclick broker status --json")(status)
    app.add_typer(broker, name="broker")


def start(
    data_dir: DataDir = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On loopback; 0 takes a free one.")
    ] = DEFAULT_PORT,
    log: Annotated[
        Path | None, typer.Option(help="File for what it says; kafka.log in the data directory.")
    ] = None,
    source: Annotated[
        Literal["auto", "docker", "java"], typer.Option(help="auto takes Docker if it answers, else Java.")
    ] = "auto",
    secure: Annotated[
        bool, typer.Option("--secure", help="SASL_SSL with SCRAM-SHA-512 and certificates of its own.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start it, or find it running, and print its address. An address in the environment wins."""
    broker = _broker(data_dir, port=port or None, log=log, source=source, secure=secure)
    broker.start(detached=True)
    _say(broker.status(), as_json)


def stop(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Stop it; its data stays."""
    broker = _broker(data_dir)
    stopped = broker.stop()
    text = (
        "stopped" if stopped else f"no broker was running in {broker.data_dir}; name another: --data-dir DIR"
    )
    finish({"stopped": stopped}, text, as_json)


def status(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Say whether it runs, and where; exit code 1 when it does not."""
    found = _broker(data_dir).status()
    _say(found, as_json)
    if not found.running:
        raise typer.Exit(1)


def _broker(data_dir: Path | None, **choices: Any) -> Broker:
    from stream.broker import Broker
    from stream.settings import load_settings

    return Broker(data_dir, client=load_settings().kafka.librdkafka(), **choices)


def _say(found: BrokerStatus, as_json: bool) -> None:
    result = {
        "running": found.running,
        "source": found.source,
        "bootstrap_servers": found.bootstrap_servers,
        "pid": found.pid,
        "data_dir": str(found.data_dir),
        "log": str(found.log) if found.log else None,
        "client_env": str(found.client_env) if found.client_env else None,
    }
    if not found.running:
        at = f" at {found.bootstrap_servers}, the address in the environment" if found.source else ""
        text = f"no broker is running{at}; start one: foreclick broker start"
    else:
        text = f"broker at {found.bootstrap_servers} ({found.source}"
        text += f", process {found.pid}, log {found.log})" if found.pid else ")"
        if found.client_env:
            text += f"\nits clients' settings: set -a; . {found.client_env}; set +a"
    finish(result, text, as_json)
