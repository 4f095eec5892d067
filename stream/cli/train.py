"""``foreclick train``: from a log to a model folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stream.cli.options import (
    Columns,
    Delimiter,
    Format,
    Json,
    LabelFile,
    LeastLabels,
    Limit,
    NoHeader,
    Order,
    Positive,
    TimeFormat,
    finish,
    read_logs,
)
from stream.cli.options import (
    progress as progress_of,
)

if TYPE_CHECKING:
    from models.fitting import Progress, Report
    from stream.labels import Labels


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
        str | None, typer.Option("--version", help="Never overwritten; the next free number by default.")
    ] = None,
    architecture: Annotated[
        str, typer.Option("--architecture", help="linear, mlp, gru, lstm or transformer.")
    ] = "lstm",
    bounds: Annotated[
        str,
        typer.Option(
            "--bounds", help="Shares of crc32(user) % 100: fit below the first, tune up to the second."
        ),
    ] = "60,70",
    split_time: Annotated[
        str | None,
        typer.Option(
            "--split-time",
            help="Split by time instead: events from this moment on test (ISO 8601, UTC unless it says otherwise, or "
            "unix milliseconds); the users between --bounds tune, all others fit.",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="At most so many passes over the log.")] = 15,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the weights and the order of users.")] = 1,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, or auto: CUDA where there is one.")
    ] = "auto",
    blend: Annotated[
        bool,
        typer.Option(
            "--blend/--no-blend",
            help="Learn from soft targets of trees and regression too, cross-fitted on the users that are fitted on.",
        ),
    ] = True,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on after the last whole epoch of the same training, if it was cut off."
        ),
    ] = False,
    utc_offset_s: Annotated[
        int, typer.Option("--utc-offset-s", help="The shop's clock against UTC, seconds.")
    ] = 0,
    churn_horizon_s: Annotated[
        float, typer.Option("--churn-horizon-s", min=1, help="Silence that counts as churn, seconds.")
    ] = 2_592_000.0,
    extra: Annotated[
        str | None,
        typer.Option(
            "--extra",
            help="Numbers of the events' extra to learn from: duration,value. With labels, by default those that "
            "--columns names.",
        ),
    ] = None,
    labels: LabelFile = None,
    positive: Positive = None,
    least_labels: LeastLabels = 20,
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
    from models.registry import load_artefact, next_version
    from models.training import train as fit
    from stream.fraud_alerts import usual_users
    from stream.labels import known_labels
    from stream.training_log import training_log

    limits = parsed_bounds(bounds)
    split_time_ms = None if split_time is None else parsed_time_ms(split_time)
    parsed_extras(extra)  # refused before anything is read
    logs = read_logs(
        files,
        format,
        columns=columns,
        delimiter=delimiter,
        time_format=time_format,
        header=not no_header,
        order=order,
        limit=limit,
    )
    known = known_labels(logs, labels, positive)
    folded = training_log(
        logs,
        utc_offset_s=utc_offset_s,
        below_share=100 if split_time else limits[0],
        extras=extras_to_read(extra, columns, labelled=known is not None),
        labels=known,
    )
    # The users that measure are no part of what is usual, nor is what happens from the split on.
    records = [record for log in logs for record in log.records]
    with progress_of("engagements watched", None) as watched:
        fraud = usual_users(records, 100 if split_time else limits[1], split_time_ms, watched)
    with training_progress() as progress:
        folder = fit(
            folded,
            out,
            name=name,
            version=version or next_version(out, name),
            architecture=architecture,
            bounds=limits,
            epochs=epochs,
            seed=seed,
            split_time_ms=split_time_ms,
            churn_horizon_s=churn_horizon_s,
            device=device,
            blend=blend,
            resume=resume,
            least_labels=least_labels,
            fraud=fraud,
            progress=progress,
        )
    manifest = load_artefact(folder).manifest
    metrics = manifest["metrics"]
    text = [f"{folder}"]
    for part, entry in metrics.items():
        text.append(
            f"next-action log-loss, {part} part: {entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}], "
            f"{entry['n']} events"
        )
    said = None
    if known is not None:
        said = head_sentence(known, manifest["calibration"].get("fake_order"))
        text.append(said)
    finish({"model": str(folder), "metrics": metrics, "fake_order": said}, "\n".join(text), as_json)


def head_sentence(labels: Labels, head: dict[str, Any] | None) -> str:
    """Whether there is a fake_order head, and what it was made of."""
    if head is None:
        return labels.lacking or (
            "Too few labelled users fall into the part to fit on, so there is no fake_order head. Give more labels or "
            "other --bounds."
        )
    users = head["labelled_users"]
    probability = "with a probability"
    if head["slope"] is None:
        probability = f"without a probability until {head['least_labels']} users of either label are known"
    return (
        f"fake_order: {users['positive']} positive ({', '.join(labels.positive)}) and {users['negative']} negative "
        f"users, {probability}"
    )


def extras_to_read(extra: str | None, columns: str | None, *, labelled: bool) -> tuple[str, ...]:
    """The numbers that a model reads: those of ``--extra``, else with labels those that ``--columns`` names."""
    from stream.formats.columns import extras_named

    if extra is None and labelled:
        return extras_named(columns)
    return parsed_extras(extra)


@contextmanager
def training_progress() -> Iterator[Progress]:
    """A line an epoch on standard error, and on a terminal a bar below them."""
    if not sys.stderr.isatty():
        yield (
            lambda report: print(line, file=sys.stderr, flush=True) if (line := epoch_line(report)) else None
        )
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("epoch 1", total=None)

        def advance(report: Report) -> None:
            if line := epoch_line(report):
                bar.console.print(line, highlight=False)
            bar.update(
                task,
                description=f"epoch {report.epoch}/{report.epochs}  loss {report.loss:.4f}  "
                f"{report.events_per_s:,.0f} events/s",
                total=report.epochs * report.events,
                completed=(report.epoch - 1) * report.events + report.events_done,
            )

        yield advance


def epoch_line(report: Report) -> str:
    """What an epoch brought; nothing before its end."""
    if report.tuning_loss is None:
        return ""
    return (
        f"epoch {report.epoch}: loss {report.loss:.4f}, tuning users {report.tuning_loss:.4f} nats an event, "
        f"{report.events_per_s:,.0f} events/s"
    )


def parsed_time_ms(text: str, flag: str = "--split-time") -> int:
    """Unix milliseconds of an ISO 8601 moment, or of their own digits.

    Raises:
        ConfigurationError: it is something else.
    """
    from stream.errors import ConfigurationError

    if text.isdecimal():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"{flag} {text!r} is no moment. Write for example 2026-01-31, 2026-01-31T18:00:00+08:00 or unix "
            f"milliseconds."
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


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


def parsed_extras(text: str | None) -> tuple[str, ...]:
    """Different names out of ``a,b``; none of None.

    Raises:
        ConfigurationError: an empty or a repeated name.
    """
    from stream.errors import ConfigurationError

    names = tuple(name.strip() for name in text.split(",")) if text is not None else ()
    if not all(names) or len(set(names)) < len(names):
        raise ConfigurationError(
            f"--extra {text!r} is not a list of different names. Write for example duration,value."
        )
    return names
