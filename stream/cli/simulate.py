"""``foreclick simulate``: a shop's clickstream that never was, with labels kept apart."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from stream.cli.options import Json, finish, progress
from stream.cli.score import written

_EXAMPLE = "Example: foreclick simulate --users 2000 --events 100000 --seed 1 --out clicks.jsonl.gz"


def register(app: typer.Typer) -> None:
    """Add ``simulate``."""
    app.command(epilog=_EXAMPLE, help="Write a simulated clickstream of people and crawlers.")(simulate)


def simulate(
    *,
    out: Annotated[str, typer.Option(help="Canonical JSON, a line an event; .gz is packed, - is stdout.")],
    users: Annotated[int, typer.Option(min=1, help="People and crawlers who may come.")] = 2_000,
    events: Annotated[int, typer.Option(min=1, help="Exactly so many, dirt not counted.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 1,
    days: Annotated[float, typer.Option(min=0.01, help="About how long the log lasts.")] = 14.0,
    labels: Annotated[
        str | None, typer.Option(help="Who is human and who a crawler, a line a user.", show_default=False)
    ] = None,
    dirt: Annotated[
        float,
        typer.Option(min=0.0, max=0.5, help="Share of bad records (replay with --order file)."),
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Simulate, and write only when everything is there."""
    import msgspec

    from models.simulator.dirt import Record, soil
    from models.simulator.simulate import simulate as simulated

    with progress("simulated users", users) as advance:
        simulation = simulated(users, events, seed, days=days, progress=lambda done, _: advance(done))
    encode = msgspec.json.Encoder().encode
    records = [Record(event.user_id.encode(), encode(event)) for event in simulation.events]
    injected: dict[str, int] = {}
    if dirt:
        records, injected = soil(records, dirt, seed)
    _write(out, (record.value for record in records))
    if labels is not None:
        _write(labels, (encode(label) for label in simulation.labels))
    n_crawlers = sum(label.label == "crawler" for label in simulation.labels)
    result = {
        "events": len(simulation.events),
        "users": len(simulation.labels),
        "crawlers": n_crawlers,
        "seed": seed,
        "first_event_time_ms": simulation.events[0].event_time_ms,
        "last_event_time_ms": simulation.events[-1].event_time_ms,
        "records": len(records),
        "injected": injected,
        "out": out,
        "labels": labels,
    }
    text = (
        f"{len(records)} records of {len(simulation.labels)} users ({n_crawlers} crawlers) written to {out}"
    )
    if "-" in (out, labels):
        # Standard output is the log itself; the last words must not become a line of it.
        print(json.dumps(result) if as_json else text, file=sys.stderr)
    else:
        finish(result, text, as_json)


def _write(path: str, lines: Iterable[bytes]) -> None:
    with written(path) as plain:
        if not path.endswith(".gz"):
            plain.writelines(line + b"\n" for line in lines)
            return
        # Neither the hour nor the file's name goes into the archive: the same log is the same bytes.
        with gzip.GzipFile(filename="", fileobj=plain, mode="wb", mtime=0) as packed:
            packed.writelines(line + b"\n" for line in lines)
