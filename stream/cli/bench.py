"""``foreclick bench``: what this machine makes of the pipeline. The code lives with the tests, in a checkout."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

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

Repeats = Annotated[int, typer.Option(min=1, help="Rounds; every entrant runs once in each.")]
SteadyRepeats = Annotated[
    int | None,
    typer.Option(min=0, help="In how many rounds latency and kills are measured too; all by default."),
]
Only = Annotated[str | None, typer.Option(help="Names of some entrants, comma separated.")]
PeerSeconds = Annotated[float, typer.Option(min=1, help="How long events a second are counted.")]
PacedSeconds = Annotated[float, typer.Option(min=1, help="How long each steady rate lasts.")]
PeerEvents = Annotated[int, typer.Option(min=1000, help="Events of the backlog that all read.")]
UserCounts = Annotated[str, typer.Option(help="Numbers of users, comma separated.")]
ScalingEvents = Annotated[int, typer.Option(min=1000, help="Events that each of them is measured with.")]
RaceSeed = Annotated[int, typer.Option(help="Draws traffic, order and the moments of the kills.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder for table, chart and JSON; tests/bench/results when not given.")
]


class NotInstalled(ForeclickError):
    """The benches are part of the source tree, not of the installed package."""


def register(app: typer.Typer) -> None:
    """Add ``bench all|pipeline|latency|swap|poison|alerts|labels|restore|timers|model|peers|scaling``."""
    bench = typer.Typer(
        no_args_is_help=True,
        help="Throughput against a stock Faust agent, latency, restore, memory. Tables, and one JSON line last.",
    )
    bench.command("all", epilog="Example: foreclick bench all")(everything)
    bench.command(epilog="Example: foreclick bench pipeline --events 100000 --sample")(pipeline)
    bench.command(epilog="Example: foreclick bench latency --rate 5000")(latency)
    bench.command(epilog="Example: foreclick bench swap --rate 5000")(swap)
    bench.command(epilog="Example: foreclick bench poison --events 100000")(poison)
    bench.command(epilog="Example: foreclick bench alerts --events 100000")(alerts)
    bench.command(epilog="Example: foreclick bench labels --events 100000")(labels)
    bench.command(epilog="Example: foreclick bench restore --restore-users 200000")(restore)
    bench.command(epilog="Example: foreclick bench timers --timers 100000")(timers)
    bench.command(epilog="Example: foreclick bench model")(model)
    bench.command(epilog="Example: foreclick bench peers --repeats 1 --only foreclick,ceiling")(peers)
    bench.command(epilog="Example: foreclick bench scaling --users 10000,100000")(scaling)
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


def alerts(users: Users = 20_000, events: Events = 100_000, model: Model = None) -> None:
    """A backlog with churn timers, with groups and with both, against one without; not part of ``bench all``."""
    _run("alerts", model, users=users, events=events)


def labels(users: Users = 20_000, events: Events = 100_000, model: Model = None) -> None:
    """What the stage of labels takes of a worker that does everything else; not part of ``bench all``."""
    _run("labels", model, users=users, events=events)


def restore(restore_users: RestoreUsers = 200_000, model: Model = None) -> None:
    """An empty data directory filled from the changelog; memory and disk of a user."""
    _run("restore", model, restore_users=restore_users)


def timers(
    timers: Annotated[int, typer.Option(min=1000, help="Users who are waited for.")] = 1_000_000,
    model: Model = None,
) -> None:
    """Everybody falls silent at once: alerts a second without the transaction, and bytes a timer on disk."""
    _run("timers", model, timers=timers)


def model(model: Model = None) -> None:
    """The step engine alone."""
    _run("model", model)


def peers(
    repeats: Repeats = 5,
    steady_repeats: SteadyRepeats = None,
    only: Only = None,
    seconds: PeerSeconds = 10,
    paced_seconds: PacedSeconds = 8,
    events: PeerEvents = 600_000,
    seed: RaceSeed = 1,
    out: Out = None,
    model: Model = None,
) -> None:
    """The same work by Faust, Quix Streams, Bytewax, PyFlink and a bare loop; `make peers` installs them."""
    _import("bench.peers.race").run(
        repeats=repeats,
        steady_repeats=steady_repeats,
        only=only,
        seed=seed,
        out=out,
        model=model,
        measures=_import("bench.peers.measuring").Measures(
            events=events, seconds=seconds, paced_s=paced_seconds
        ),
    )


def scaling(
    users: UserCounts = "10000,100000,1000000",
    events: ScalingEvents = 500_000,
    seed: RaceSeed = 1,
    out: Out = None,
    model: Model = None,
) -> None:
    """One worker and two, few users and many: cost of an event, memory, disk, restore."""
    numbers = [int(number) if number.strip().isdigit() else 0 for number in users.split(",")]
    if not all(numbers):
        raise typer.BadParameter(f"--users {users} is no list of numbers; give it as 10000,100000.")
    _import("bench.scaling").run(numbers, events, seed, model, out)


def _run(part: str, model_folder: Path | None, **sizes: float) -> None:
    runs = _import("bench.runs")
    runs.run(part, _import("bench.bed").Sizes(**sizes), model_folder)


def _import(module: str) -> Any:
    """A module of the checkout's tests."""
    root = Path(__file__).parents[2]
    if not (root / "tests" / "bench" / "runs.py").is_file():
        raise NotInstalled(
            "The benches are not installed with the package; they live in the source tree under tests/bench. "
            "Run `make bench` in a checkout."
        )
    # A console script does not have the checkout on its path; it goes first, as others may have a package `tests` too.
    if sys.path[0] != str(root):
        sys.path.insert(0, str(root))
    return importlib.import_module(f"tests.{module}")
