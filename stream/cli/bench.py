"""``foreclick bench``: what this machine makes of the pipeline. The code lives with the tests, in a checkout."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from stream.cli.options import Model
from stream.errors import ForeclickError

Users = Annotated[int, typer.Option(min=1, help="Users of the traffic.")]
Events = Annotated[int, typer.Option(min=1000, help="Events of the backlog.")]
StockEvents = Annotated[int, typer.Option(min=100, help="Events of the stock agent's backlog.")]
Rate = Annotated[float, typer.Option(min=1, help="Events a second while latency is measured.")]
Seconds = Annotated[
    float, typer.Option(min=1, help="How long latency is measured, after five seconds of warming up.")
]
RestoreUsers = Annotated[int, typer.Option(min=1000, help="Users whose rows are restored.")]
Sample = Annotated[
    bool, typer.Option("--sample", help="Profile the worker by samples; its figures are then too low.")
]


class NotInstalled(ForeclickError):
    """The benches are part of the source tree, not of the installed package."""


def register(app: typer.Typer) -> None:
    """Add ``bench all|pipeline|latency|swap|poison|restore|model``."""
    bench = typer.Typer(
        no_args_is_help=True,
        help="Throughput against a stock Faust agent, latency, restore, memory. Tables, and one JSON line last.",
    )
    bench.command("all", epilog="Example: foreclick bench all")(everything)
    bench.command(epilog="Example: foreclick bench pipeline --events 100000 --sample")(pipeline)
    bench.command(epilog="Example: foreclick bench latency --rate 5000")(latency)
    bench.command(epilog="Example: foreclick bench swap --rate 5000")(swap)
    bench.command(epilog="Example: foreclick bench poison --events 100000")(poison)
    bench.command(epilog="Example: foreclick bench restore --restore-users 200000")(restore)
    bench.command(epilog="Example: foreclick bench model")(model)
    app.add_typer(bench, name="bench")


def everything(
    users: Users = 20_000,
    events: Events = 400_000,
    stock_events: StockEvents = 20_000,
    rate: Rate = 5_000,
    seconds: Seconds = 20,
    restore_users: RestoreUsers = 200_000,
    sample: Sample = False,
    model: Model = None,
) -> None:
    """Every part in one run on one broker; figures of busy machines mean nothing."""
    _run(
        "all",
        model,
        users=users,
        events=events,
        stock_events=stock_events,
        rate=rate,
        seconds=seconds,
        restore_users=restore_users,
        sample=sample,
    )


def pipeline(
    users: Users = 20_000,
    events: Events = 400_000,
    stock_events: StockEvents = 20_000,
    sample: Sample = False,
    model: Model = None,
) -> None:
    """A backlog through one worker, and the same work by a stock Faust agent."""
    _run("pipeline", model, users=users, events=events, stock_events=stock_events, sample=sample)


def latency(
    users: Users = 20_000,
    rate: Rate = 5_000,
    seconds: Seconds = 20,
    sample: Sample = False,
    model: Model = None,
) -> None:
    """Event to score at a steady rate, for readers of both isolation levels."""
    _run("latency", model, users=users, rate=rate, seconds=seconds, sample=sample)


def swap(users: Users = 20_000, rate: Rate = 5_000, model: Model = None) -> None:
    """Another model is activated under paced load: what its p99 adds while it is exchanged and rows are rebuilt."""
    _run("swap", model, users=users, rate=rate)


def poison(users: Users = 20_000, events: Events = 100_000, model: Model = None) -> None:
    """A backlog of which every second record is rejected, against a clean one; not part of ``bench all``."""
    _run("poison", model, users=users, events=events)


def restore(restore_users: RestoreUsers = 200_000, model: Model = None) -> None:
    """An empty data directory filled from the changelog; memory and disk of a user."""
    _run("restore", model, restore_users=restore_users)


def model(model: Model = None) -> None:
    """The step engine alone."""
    _run("model", model)


def _run(part: str, model_folder: Path | None, **sizes: float) -> None:
    root = Path(__file__).parents[2]
    if not (root / "tests" / "bench" / "runs.py").is_file():
        raise NotInstalled(
            "The benches are not installed with the package; they live in the source tree under tests/bench. "
            "Run `make bench` in a checkout."
        )
    # A console script does not have the checkout on its path; it goes first, as others may have a package `tests` too.
    sys.path.insert(0, str(root))
    runs = importlib.import_module("tests.bench.runs")
    runs.run(part, importlib.import_module("tests.bench.bed").Sizes(**sizes), model_folder)
