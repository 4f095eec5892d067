"""``foreclick evaluate-alerts``: how many attackers are found, how soon, and beside which simple methods."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from stream.cli.options import (
    Columns,
    Delimiter,
    Format,
    Json,
    NoHeader,
    TimeFormat,
    finish,
    progress,
)

_ATTACKS = "burst=30,coattail=30,replay=30,camouflage=30,drip=30"
_NEGATIVES = "flash_sale=5,celebrity=1,families=5,crawlers=5,heavy_buyers=10"


def register(app: typer.Typer) -> None:
    """Add ``evaluate-alerts``."""
    app.command(
        "evaluate-alerts",
        epilog="Example: foreclick evaluate-alerts --users 20000 --events 400000 --seeds 1; in a real log: "
        "--inject-into log.csv.gz --format taobao --seeds 5; "
        "on a log that has attacks: mixed.jsonl.gz --labels labels.jsonl",
        help="Measure the alerts on attacks whose truth is known.",
    )(evaluate_alerts)


def evaluate_alerts(
    file: Annotated[
        str | None, typer.Argument(help="A log that has its attacks already; needs --labels.")
    ] = None,
    *,
    labels: Annotated[
        str | None, typer.Option(help="Who of FILE is fake, a line a user.", show_default=False)
    ] = None,
    inject_into: Annotated[
        str | None,
        typer.Option("--inject-into", help="A real log to put attacks into.", show_default=False),
    ] = None,
    attacks: Annotated[str, typer.Option(help="Accounts of each kind.")] = _ATTACKS,
    negatives: Annotated[str, typer.Option(help="Honest look-alikes.")] = _NEGATIVES,
    seeds: Annotated[int, typer.Option(min=1, help="So many logs, each of the seed after the last.")] = 1,
    first_seed: Annotated[int, typer.Option("--first-seed", min=0, help="Seed of the first log.")] = 1,
    users: Annotated[int, typer.Option(min=1, help="People of the simulated shop.")] = 20_000,
    events: Annotated[int, typer.Option(min=1, help="Their events.")] = 400_000,
    days: Annotated[float, typer.Option(min=0.01, help="About how long that lasts.")] = 14.0,
    target_fpr: Annotated[
        float, typer.Option("--target-fpr", help="Share of honest users that may be flagged.")
    ] = 0.01,
    memory: Annotated[
        int, typer.Option(min=1, help="Times the usual memory of items and users: what the bound costs.")
    ] = 1,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    as_json: Json = False,
) -> None:
    """Reference, chain and forest are fitted on users of other folds; originals of replayed sessions do not count."""
    from models.simulator.attacks import ATTACKS
    from models.simulator.negatives import NEGATIVES
    from stream.errors import ConfigurationError
    from stream.evaluating_alerts import given_log, injected_logs, measured, simulated_logs, summary
    from stream.files import read_log
    from stream.injecting import counts_of

    began = time.monotonic()
    if (file is None) != (labels is None) or (file is not None and inject_into is not None):
        raise ConfigurationError(
            "Name a log and its --labels, or a log with --inject-into, or neither for a simulated shop."
        )
    wanted = counts_of(attacks, ATTACKS, "--attacks"), counts_of(negatives, NEGATIVES, "--negatives")
    name = file if file is not None else inject_into
    drawn = range(first_seed, first_seed + seeds)
    if name is None:
        logs = simulated_logs(drawn, users, events, days, *wanted, _tell)
    else:
        log = read_log(
            name,
            format,
            columns=columns,
            delimiter=delimiter,
            time_format=time_format,
            header=not no_header,
        )
        injected = injected_logs(log, drawn, *wanted)
        logs = injected if labels is None else given_log(log, labels)
    runs = []
    for happened, truth in logs:
        with progress("events watched", len(happened)) as advance:
            runs.append(measured(happened, truth, target_fpr, advance, memory))
    result = {
        "log": name or "simulated",
        "seeds": len(runs),
        "first_seed": first_seed,
        "target_fpr": target_fpr,
        "memory": memory,
        **summary(runs),
        "seconds": round(time.monotonic() - began, 1),
    }
    if as_json:
        finish(result, "", as_json)
    else:
        _print_tables(result)


def _tell(doing: str) -> None:
    print(doing, file=sys.stderr, flush=True)


def _print_tables(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "attack",
        "detector",
        "AUC",
        "AP",
        f"recall at {result['target_fpr']:.1%} FP",
        "alert after",
        box=SIMPLE_HEAD,
    )
    for attack, figures in result["attacks"].items():
        for number, (name, each) in enumerate(figures["detectors"].items()):
            when = ""
            if each.get("median_seconds") is not None:
                when = f"{each['median_seconds']:.0f} s, {each['median_events']:.0f} events"
            numbers = [f"{each[figure]:.3f}" for figure in ("auc", "average_precision", "recall")]
            table.add_row("" if number else attack, name, *numbers, when)
        table.add_section()
    console = Console(width=110)
    console.print(table)
    flagged = ", ".join(f"{kind} {share:.1%}" for kind, share in result["false_positives"].items())
    print(f"Honest users above that threshold: {flagged}")
    said = ", ".join(f"{kind} {share:.1%}" for kind, share in result["flagged"].items())
    print(f"Flagged by the threshold of the reference, without labels: {said}")
    for attack, figures in result["attacks"].items():
        if figures["lead"] < 0:
            print(f"{attack}: BEHIND {figures['best_baseline']} by {-figures['lead']:.3f} average precision.")
