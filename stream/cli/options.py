"""Options that several commands share, and how commands speak: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

BootstrapServers = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", "-b", help="Kafka, host:port, comma separated.", show_default=False),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where this worker's rows live.", show_default=False)
]
Model = Annotated[
    Path | None,
    typer.Option("--model", help="Model folder <root>/<name>/<version>; the bundled one by default."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="canonical, segment, ga4, retailrocket, rees46, taobao, shopee, online_retail, tpp or auto.",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="Delimited text: user=…,time=…,action=…[,item=…,category=…,price=…,label=…,extra.NAME=…].",
    ),
]
Delimiter = Annotated[str | None, typer.Option("--delimiter", help="Of delimited text; a comma by default.")]
TimeFormat = Annotated[
    str | None, typer.Option("--time-format", help="With --columns: s, ms, iso or a strptime pattern.")
]
NoHeader = Annotated[bool, typer.Option("--no-header", help="The first line is data, not column names.")]
Order = Annotated[str, typer.Option("--order", help="time sorts the file by event time; file does not.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=0, help="At most so many events, the first in that order.")
]


LabelFile = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help='Who is who, beside or instead of label= in --columns: a line {"user_id": …, "label": …} each.',
        show_default=False,
    ),
]
Positive = Annotated[
    str | None,
    typer.Option(
        "--positive",
        help="The labels that fake_order is to find, with commas between them; by default 1, true, fraud, fake, bot "
        "and the like.",
        show_default=False,
    ),
]
LeastLabels = Annotated[
    int,
    typer.Option(
        "--least-labels", min=1, help="Labelled users of the rarer kind that fake_order's probability needs."
    ),
]


class Advance(Protocol):
    """Tells the progress how far the work is."""

    def __call__(self, done: int) -> None:
        """So many are done."""
        ...


@contextmanager
def progress(what: str, total: int | None, every_s: float = 5.0) -> Iterator[Advance]:
    """A bar on a terminal, a plain line every few seconds elsewhere; both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    last_s = time.monotonic()

    def advance(done: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= every_s:
            last_s = time.monotonic()
            print(
                f"{what}: {done}" + (f" of {total}" if total is not None else ""), file=sys.stderr, flush=True
            )

    yield advance


def tell_left_out(log: Any) -> None:
    """Say on stderr how many rows of a ``stream.files.LogFile`` belong to nobody."""
    if log.left_out:
        print(f"{log.name}: {log.left_out} rows without a customer left out", file=sys.stderr, flush=True)


def read_logs(files: list[str], format: str, **described: Any) -> list[Any]:  # noqa: A002 - the flag's name
    """Read several logs alike and say what was left out of each.

    Args:
        described: how to read them, as ``stream.files.read_log``.
    """
    from stream.files import read_log

    logs = [read_log(file, format, **described) for file in files]
    for log in logs:
        tell_left_out(log)
    return logs


def finish(result: dict[str, Any], text: str, as_json: bool) -> None:
    """The command's last words: the text, or with --json one object as the last line."""
    print(json.dumps(result) if as_json else text, flush=True)
