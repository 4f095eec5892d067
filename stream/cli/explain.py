"""``foreclick explain``: a user's timeline with what was surprising in it."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from stream.cli.options import (
    BootstrapServers,
    Columns,
    Delimiter,
    Format,
    Json,
    NoHeader,
    Order,
    TimeFormat,
    finish,
    progress,
)


def register(app: typer.Typer) -> None:
    """Add ``explain``."""
    app.command(epilog="Example: foreclick explain u17 --html u17.html")(explain)


def explain(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    *,
    last: Annotated[
        int, typer.Option("--last", min=1, help="Show at most so many events, the newest.")
    ] = 200,
    since: Annotated[
        str | None,
        typer.Option("--since", help="Read only what was written since then (15m, 2h, 7d, or a time)."),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option("--html", help="Write the timeline as one page that needs nothing beside itself."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", help="Predictions that `score --out` wrote, instead of the topics."),
    ] = None,
    events: Annotated[
        str | None,
        typer.Option("--events", help="With --file: the log that was scored, for actions and items."),
    ] = None,
    alerts: Annotated[
        list[str] | None,
        typer.Option("--alerts", help="With --file: alerts that `score` wrote; more than once."),
    ] = None,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    order: Order = "time",
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Draw what a user did, session by session: how surprising each event was, why, and the alerts about it.

    A star marks events that an alert rests on. --format, --columns, --delimiter, --time-format, --no-header and --order
    describe the log of --events, as they did for score.
    """
    from rich.console import Console

    from stream.cli.score import written
    from stream.errors import ConfigurationError
    from stream.settings import load_settings
    from stream.timeline_drawing import timeline_drawing, timeline_page
    from stream.user_reading import user_in_files, user_in_topics
    from stream.wording import moment_of, plain

    if file is None and (events is not None or alerts):
        raise ConfigurationError(
            "--events and --alerts belong to --file; the topics have both. Leave them out."
        )
    if file is not None and since is not None:
        raise ConfigurationError("--since is about topics; a file is read whole. Leave it out.")
    with progress("records read", None) as advance:
        if file is not None:
            options = {
                "format": format,
                "columns": columns,
                "delimiter": delimiter,
                "time_format": time_format,
                "header": not no_header,
                "order": order,
            }
            found = user_in_files(
                file,
                user,
                last=last,
                events=events,
                log_options=options,
                alerts=alerts or (),
                advance=advance,
            )
        else:
            settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
            since_ms = None if since is None else moment_of(since, int(time.time() * 1000))
            found = user_in_topics(settings, user, last=last, since_ms=since_ms, advance=advance)
    if html is not None:
        with written(html, "--html") as page:
            page.write(timeline_page(found).encode())
    if as_json:
        finish({**found.described(), "html": html}, "", as_json)
    elif html != "-":
        console = Console(highlight=False)
        console.print(timeline_drawing(found))
        if html is not None:
            print(f"The page is {plain(html)}", file=sys.stderr)
