"""``foreclick worker``: the Faust worker, the same as ``faust -A stream.app worker``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from stream.cli.options import BootstrapServers, DataDir, Model

if TYPE_CHECKING:
    from pydantic import BaseModel


def register(app: typer.Typer) -> None:
    """Add ``worker``."""
    app.command(
        epilog="Example: foreclick worker --data-dir /var/lib/foreclick/0 --http-port 6066",
        help="Score events until stopped; every worker needs a data directory of its own.",
    )(worker)


def _print_settings(wanted: bool) -> None:
    if wanted:
        from stream.settings import PREFIX, Settings

        for line in setting_lines(Settings, PREFIX):
            print(line)
        raise typer.Exit


def setting_lines(group: type[BaseModel], prefix: str) -> Iterator[str]:
    """A line a setting: its variable, its default if it has one, and the reason."""
    from pydantic import BaseModel

    for name, field in group.model_fields.items():
        variable, kind = prefix + name.upper(), field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_lines(kind, f"{variable}__")
            continue
        secret = "SecretStr" in str(kind)
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None else str(default) or '""'
        reason = field.description or ("in a file that this names" if secret else "")
        yield f"{variable + '_FILE' * secret:44} {shown:30} {reason}".rstrip()


def worker(
    bootstrap_servers: BootstrapServers = None,
    data_dir: DataDir = None,
    http_port: Annotated[
        int | None, typer.Option(help="/metrics, /readyz and /state; 0 takes a free one.", show_default=False)
    ] = None,
    model: Model = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default=False)] = None,
    settings_wanted: Annotated[  # noqa: ARG001 - its callback answers
        bool,
        typer.Option(
            "--settings", callback=_print_settings, is_eager=True, help="List every setting and its default."
        ),
    ] = False,
) -> None:
    """Join the group and score; SIGTERM or Ctrl-C ends it after the open transactions.

    All else is set by environment variables, which --settings lists.
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
