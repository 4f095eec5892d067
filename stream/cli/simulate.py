"""``foreclick simulate``: a shop's clickstream that never was, or attacks within a real one; labels kept apart."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from stream.cli.options import Columns, Delimiter, Format, Json, NoHeader, TimeFormat, finish, progress
from stream.cli.score import written

_EXAMPLE = (
    "Example: foreclick simulate --users 2000 --events 100000 --seed 1 --out clicks.jsonl.gz. "
    "Attacks: --attacks burst=30,coattail=30,replay=30,camouflage=30,drip=30 "
    "--negatives flash_sale=5,celebrity=2,families=5,crawlers=5,heavy_buyers=10 --labels labels.jsonl; "
    "in a real log: --inject-into log.csv.gz --format taobao"
)
#: What a real log brings itself.
_SHOP = ("users", "events", "days")
_LOG = ("format", "columns", "delimiter", "time_format", "no_header")


def register(app: typer.Typer) -> None:
    """Add ``simulate``."""
    app.command(epilog=_EXAMPLE, help="Write a simulated clickstream of people and crawlers.")(simulate)


def simulate(
    context: typer.Context,
    *,
    out: Annotated[str, typer.Option(help="Canonical JSON, a line an event; .gz is packed, - is stdout.")],
    users: Annotated[int, typer.Option(min=1, help="People and crawlers who may come.")] = 2_000,
    events: Annotated[int, typer.Option(min=1, help="Exactly so many, dirt not counted.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 1,
    days: Annotated[float, typer.Option(min=0.01, help="About how long the log lasts.")] = 14.0,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Who is human and who a crawler, fake or honest, a line a user.", show_default=False
        ),
    ] = None,
    dirt: Annotated[
        float,
        typer.Option(min=0.0, max=0.5, help="Share of bad records (replay with --order file)."),
    ] = 0.0,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="Accounts of each kind: burst, coattail, replay, camouflage, drip.", show_default=False
        ),
    ] = None,
    negatives: Annotated[
        str | None,
        typer.Option(
            help="Honest look-alikes: flash_sale, celebrity, families, crawlers, heavy_buyers.",
            show_default=False,
        ),
    ] = None,
    inject_into: Annotated[
        str | None,
        typer.Option(help="A log to put them into, instead of a simulated shop.", show_default=False),
    ] = None,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    as_json: Json = False,
) -> None:
    """Simulate, and write only when everything is there."""
    import msgspec

    from models.simulator.attacks import ATTACKS
    from models.simulator.dirt import Record, soil
    from models.simulator.negatives import NEGATIVES
    from models.simulator.simulate import simulate as simulated
    from stream.errors import ConfigurationError
    from stream.files import read_log
    from stream.injecting import clean_log, counts_of
    from stream.injecting import inject_into as injected_into

    wanted = counts_of(attacks, ATTACKS, "--attacks"), counts_of(negatives, NEGATIVES, "--negatives")
    for name in _LOG if inject_into is None else _SHOP:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = "--" + name.replace("_", "-")
            raise ConfigurationError(
                f"{flag} describes the log of --inject-into. Name that log, or leave {flag} out."
                if inject_into is None
                else f"{flag} is of a simulated shop, and --inject-into brings a log of its own. Leave one out."
            )
    if inject_into is not None and not any(wanted):
        raise ConfigurationError(
            "--inject-into has nothing to put in. Say what, for example: --attacks burst=30,drip=30"
        )
    encode = msgspec.json.Encoder().encode
    crawlers: set[str] = set()
    left_out: dict[str, int] = {}
    log: list[Any]
    truth: list[Any]
    if inject_into is not None:
        log, records, left_out = clean_log(
            read_log(
                inject_into,
                format,
                columns=columns,
                delimiter=delimiter,
                time_format=time_format,
                header=not no_header,
            )
        )
        truth = []
    else:
        with progress("simulated users", users) as advance:
            simulation = simulated(users, events, seed, days=days, progress=lambda done, _: advance(done))
        log, truth = simulation.events, simulation.labels
        crawlers = {label.user_id for label in truth if label.label == "crawler"}
        records = [Record(event.user_id.encode(), encode(event)) for event in log]
    first_ms, last_ms, scripted = log[0].event_time_ms, log[-1].event_time_ms, {}
    if any(wanted):
        records, truth, n_scripted, accounts = injected_into(records, log, *wanted, seed, crawlers=crawlers)
        scripted = {
            "scripted_events": n_scripted,
            "accounts": accounts,
            "fake": sum(label.label == "fake" for label in truth),
            "left_out": left_out,
        }
    n_events = len(records)
    dirty: dict[str, int] = {}
    if dirt:
        records, dirty = soil(records, dirt, seed)
    _write(out, (record.value for record in records))
    if labels is not None:
        _write(labels, (encode(label) for label in truth))
    result = {
        "events": n_events,
        "users": len(truth),
        "crawlers": len(crawlers),
        "seed": seed,
        "first_event_time_ms": first_ms,
        "last_event_time_ms": last_ms,
        "records": len(records),
        "injected": dirty,
        "out": out,
        "labels": labels,
        **scripted,
    }
    text = f"{len(records)} records of {len(truth)} users ({len(crawlers)} crawlers) written to {out}"
    if scripted:
        text += f"; {n_scripted} events are of " + _listed(accounts)
    if left_out:
        text += f"; lines of {inject_into} that are no events were left out: {_listed(left_out)}"
    if "-" in (out, labels):
        # Standard output is the log itself; the last words must not become a line of it.
        print(json.dumps(result) if as_json else text, file=sys.stderr)
    else:
        finish(result, text, as_json)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _write(path: str, lines: Iterable[bytes]) -> None:
    with written(path) as plain:
        if not path.endswith(".gz"):
            plain.writelines(line + b"\n" for line in lines)
            return
        # Neither the hour nor the file's name goes into the archive: the same log is the same bytes.
        with gzip.GzipFile(filename="", fileobj=plain, mode="wb", mtime=0) as packed:
            packed.writelines(line + b"\n" for line in lines)
