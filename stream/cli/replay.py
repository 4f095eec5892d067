"""``foreclick replay``: a file into the input topic."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.options import (
    BootstrapServers,
    Columns,
    Delimiter,
    Format,
    Json,
    Limit,
    NoHeader,
    Order,
    TimeFormat,
    finish,
    progress,
    tell_left_out,
)


def register(app: typer.Typer) -> None:
    """Add ``replay``."""
    app.command(
        epilog="Example: foreclick replay clicks.jsonl.gz --rate 5000",
        help="Send a log into the input topic.",
    )(replay)


def replay(
    file: Annotated[str, typer.Argument(help="A log, plain or .gz; - is standard input.")],
    *,
    bootstrap_servers: BootstrapServers = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Events a second; else as fast as it goes.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(min=0.001, help="The log's own rhythm, so many times faster.")
    ] = None,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    order: Order = "time",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Produce every line of the file, key = user id; lines that no format explains go too, and become dead letters."""
    from stream.errors import ConfigurationError
    from stream.files import read_log
    from stream.replay import replay as produce
    from stream.settings import load_settings
    from stream.topics import existing

    if rate is not None and speed is not None:
        raise ConfigurationError("--rate and --speed contradict each other. Give one of them.")
    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    log = read_log(
        file,
        format,
        columns=columns,
        delimiter=delimiter,
        time_format=time_format,
        header=not no_header,
        order=order,
        limit=limit,
    )
    tell_left_out(log)
    topic = settings.clicks_topic
    existing(settings, topic)
    with progress("sent", len(log.records)) as advance:
        counts = produce(log.records, settings.kafka.librdkafka(), topic, rate, speed, advance)
    result = {"topic": topic, "format": log.format, **counts}
    finish(
        result,
        f"{counts['sent']} events ({log.format}) sent to {topic}, {counts['records_per_s']:.0f} a second",
        as_json,
    )
