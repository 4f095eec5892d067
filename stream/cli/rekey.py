"""``foreclick rekey``: a topic with missing or foreign keys to one keyed by user."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.options import BootstrapServers, Format, Json, finish, progress


def register(app: typer.Typer) -> None:
    """Add ``rekey``."""
    app.command(
        epilog="Example: foreclick rekey --from web-events --to clicks --format segment",
        help="Copy a topic to one keyed by user.",
    )(rekey)


def rekey(
    *,
    source: Annotated[str, typer.Option("--from", help="Topic with missing or foreign keys.")],
    target: Annotated[str | None, typer.Option("--to", help="The input topic unless told otherwise.")] = None,
    bootstrap_servers: BootstrapServers = None,
    format: Format = "auto",  # noqa: A002 - the flag's name
    as_json: Json = False,
) -> None:
    """Copy exactly once what the topic holds now; run again, it goes on with what is new."""
    from stream.rekeying import rekey as copy
    from stream.settings import load_settings

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    target = target or settings.clicks_topic
    with progress("rekeyed", None) as advance:
        found = copy(settings, source, target, format, advance)
    result = {
        "from": source,
        "to": target,
        "read": found.read,
        "keyed": found.keyed,
        "kept": found.kept,
        "not_keyed": found.not_keyed,
        "tombstones_left_out": found.tombstones,
        "examples_not_keyed": found.examples,
    }
    text = f"{found.read} records read: {found.keyed} have their user's key now, {found.kept} had it"
    if found.not_keyed:
        text += (
            f"; {found.not_keyed} could not be keyed and were copied as they are ({', '.join(found.examples)}): they "
            "become dead letters, or name their --format"
        )
    if found.tombstones:
        text += f"; {found.tombstones} tombstones left out: send them again under their user's key"
    finish(result, text, as_json)
