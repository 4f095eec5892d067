"""``foreclick worker``: the Faust worker, the same as ``faust -A stream.app worker``."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.options import BootstrapServers, DataDir, Model


def register(app: typer.Typer) -> None:
    """Add ``worker``."""
    app.command(
        epilog="Example: foreclick worker --data-dir /var/lib/foreclick/0 --http-port 6066",
        help="Score events until stopped; every worker needs a data directory of its own.",
    )(worker)


def worker(
    bootstrap_servers: BootstrapServers = None,
    data_dir: DataDir = None,
    http_port: Annotated[
        int | None, typer.Option(help="/metrics, /readyz and /state; 0 takes a free one.", show_default=False)
    ] = None,
    model: Model = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default=False)] = None,
) -> None:
    """Join the group and score; SIGTERM or Ctrl-C ends it after the open transactions.

    All else is set by environment variables: each field of stream/settings.py is FORECLICK_ and its name.
    """
    from stream.settings import load_settings

    # Settings first: a misspelt one is said before the libraries are loaded.
    settings = load_settings(
        kafka__bootstrap_servers=bootstrap_servers,
        data_dir=data_dir,
        http__port=http_port,
        model=model,
        device=device,
    )
    from stream.broker.client import connect

    # Asked here as well as when the app starts: the answer comes before Faust and torch are loaded.
    connect(settings.kafka.librdkafka())
    from stream.app import run_worker

    run_worker(settings)
