"""``foreclick train``: from a log to a model folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stream.cli.options import Columns, Delimiter, Format, Json, Limit, NoHeader, Order, TimeFormat, finish


def register(app: typer.Typer) -> None:
    """Add ``train``."""
    app.command(
        epilog="Example: foreclick train clicks.jsonl.gz --out models --name shop --version 1",
        help="Train a model on a log, split by user.",
    )(train)


def train(
    files: Annotated[list[str], typer.Argument(help="Logs, plain or .gz; - is standard input.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", help="The model store; the model lies in <out>/<name>/<version>.")
    ],
    name: Annotated[str, typer.Option("--name", help="The model's name.")] = "shop",
    version: Annotated[
        str, typer.Option("--version", help="A new one; versions are never overwritten.")
    ] = "1",
    architecture: Annotated[
        str, typer.Option("--architecture", help="linear, mlp, gru, lstm or transformer.")
    ] = "lstm",
    bounds: Annotated[
        str,
        typer.Option(
            "--bounds", help="Shares of crc32(user) % 100: fit below the first, tune up to the second."
        ),
    ] = "60,70",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="At most so many passes over the log.")] = 15,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the weights and the order of users.")] = 1,
    utc_offset_s: Annotated[
        int, typer.Option("--utc-offset-s", help="The shop's clock against UTC, seconds.")
    ] = 0,
    churn_horizon_s: Annotated[
        float, typer.Option("--churn-horizon-s", min=1, help="Silence that counts as churn, seconds.")
    ] = 2_592_000.0,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    order: Order = "time",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Fit on most users, tune on some, measure next-action log-loss on the rest."""
    from models.registry import load_artefact
    from models.training import train as fit
    from stream.files import read_log
    from stream.training_log import training_log

    limits = parsed_bounds(bounds)
    logs = [
        read_log(
            file,
            format,
            columns=columns,
            delimiter=delimiter,
            time_format=time_format,
            header=not no_header,
            order=order,
            limit=limit,
        )
        for file in files
    ]
    folder = fit(
        training_log(logs, utc_offset_s=utc_offset_s),
        out,
        name=name,
        version=version,
        architecture=architecture,
        bounds=limits,
        epochs=epochs,
        seed=seed,
        churn_horizon_s=churn_horizon_s,
        progress=print_epoch,
    )
    metrics = load_artefact(folder).manifest["metrics"]
    text = [f"{folder}"]
    for part, entry in metrics.items():
        text.append(
            f"next-action log-loss, {part} users: {entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}], "
            f"{entry['n']} events"
        )
    finish({"model": str(folder), "metrics": metrics}, "\n".join(text), as_json)


def print_epoch(epoch: int, loss: float, tuning_loss: float, events_per_s: float) -> None:
    """One line an epoch, on standard error."""
    print(
        f"epoch {epoch}: loss {loss:.4f}, tuning users {tuning_loss:.4f} nats an event, {events_per_s:,.0f} events/s",
        file=sys.stderr,
        flush=True,
    )


def parsed_bounds(text: str) -> tuple[int, int]:
    """Two whole numbers out of ``a,b``.

    Raises:
        ConfigurationError: it is something else.
    """
    from stream.errors import ConfigurationError

    try:
        fit, tune = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(
            f"--bounds {text!r} is not two whole numbers. Write for example 60,70."
        ) from None
    return fit, tune
