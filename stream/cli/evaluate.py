"""``foreclick evaluate``: how good a model is on a log, beside simple methods, with intervals by user."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stream.cli.options import (
    Columns,
    Delimiter,
    Format,
    Json,
    LabelFile,
    Limit,
    NoHeader,
    Order,
    Positive,
    TimeFormat,
    finish,
    progress,
)


def register(app: typer.Typer) -> None:
    """Add ``evaluate``."""
    app.command(
        epilog="Example: foreclick evaluate models/shop/1 clicks.jsonl.gz --baselines --report report",
        help="Measure a model on a log, beside simple methods.",
    )(evaluate)


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model folder <root>/<name>/<version>.")],
    file: Annotated[str, typer.Argument(help="A log, plain or .gz; - is standard input.")],
    *,
    split: Annotated[
        str,
        typer.Option(
            "--split", help="test: users that the model was not made from; all: a log of other users."
        ),
    ] = "test",
    bounds: Annotated[
        str | None,
        typer.Option(
            "--bounds", help="As for train; the model's own by default. Test users are from the second on."
        ),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Fit and measure simple methods on the same split.")
    ] = False,
    baselines_on: Annotated[
        str | None,
        typer.Option(
            "--baselines-on",
            help="Fit the baselines on this log of other users, of the same format, with the model's bounds.",
            show_default=False,
        ),
    ] = None,
    rebuilt: Annotated[
        bool,
        typer.Option("--rebuilt", help="What states rebuilt from the window cost, on a sample of users."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="A folder for report.html and metrics.json.", show_default=False),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default=False)] = None,
    labels: LabelFile = None,
    positive: Positive = None,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    order: Order = "time",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Intervals are 95 %, by resampling users; differences to the baselines are paired."""
    began = time.monotonic()
    from stream.cli.train import parsed_bounds
    from stream.evaluating import evaluated, read_for, write_report
    from stream.settings import load_settings

    settings = load_settings(device=device)
    read = read_for(
        model,
        file,
        settings,
        split=split,
        bounds=None if bounds is None else parsed_bounds(bounds),
        baselines_on=baselines_on,
        labels=labels,
        positive=positive,
        format=format,
        columns=columns,
        delimiter=delimiter,
        time_format=time_format,
        header=not no_header,
        order=order,
        limit=limit,
    )
    with progress("predicted", len(read.columns["row"])) as advance:
        done = evaluated(
            read,
            settings,
            with_baselines=baselines or baselines_on is not None,
            with_rebuilt=rebuilt,
            advance=advance,
            tell=_tell,
        )
    found = [done.comparison] if done.rebuilt is None else [done.comparison, done.rebuilt]
    result = read.described() | {
        "metrics": [entry for each in found for entry in each.entries()],
        "differences": [entry for each in found for entry in each.differences()],
        "verdicts": done.comparison.verdicts(),
        "notes": done.comparison.notes,
        "seconds": round(time.monotonic() - began, 2),
    }
    if report is not None:
        write_report(report, result, done, read)
    if as_json:
        finish(result, "", as_json)
    else:
        _print_tables(result)


def _tell(doing: str) -> None:
    print(f"measuring {doing}", file=sys.stderr, flush=True)


def _print_tables(result: dict[str, Any]) -> None:
    """For people: a table a head, then what must be known."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    print(
        f"{result['model']['name']}/{result['model']['version']} on {result['users']} users and "
        f"{result['events']} events of {result['file']} (--split {result['split']})"
    )
    less = {(entry["head"], entry["name"], entry["metric"]): entry for entry in result["differences"]}
    model = result["model"]["entry"]
    for head in dict.fromkeys(entry["head"] for entry in result["metrics"]):
        entries = [entry for entry in result["metrics"] if entry["head"] == head]
        table = Table("metric", "method", "value [95 %]", f"{model} less it [95 %]", "n", box=SIMPLE_HEAD)
        table.title, table.title_justify = head.replace("_", " "), "left"
        for metric in dict.fromkeys(entry["metric"] for entry in entries):
            for entry in (each for each in entries if each["metric"] == metric):
                label = metric if entry["name"] == model else ""
                difference = less.get((head, f"{model} - {entry['name']}", metric))
                paired = shown(difference) if difference else ""
                table.add_row(label, entry["name"], shown(entry), paired, str(entry["n"]))
        Console(width=110).print(table)
    for verdict in result["verdicts"]:
        print(sentence(result["model"]["entry"], verdict))
    for note in result["notes"]:
        print(note)


def shown(entry: dict[str, Any]) -> str:
    """A value with its interval."""
    numbers = [entry["value"], entry["low"], entry["high"]]
    value, low, high = ("-" if number is None else f"{number:.4f}" for number in numbers)
    return f"{value} [{low}, {high}]"


def sentence(model: str, verdict: dict[str, str]) -> str:
    """What an interval says about a baseline."""
    says = {
        "ahead": "is ahead of",
        "behind": "is BEHIND",
        "undecided": "is not told apart from",
    }[verdict["verdict"]]
    return f"{verdict['head']}, {verdict['metric']}: {model} {says} {verdict['baseline']}."
