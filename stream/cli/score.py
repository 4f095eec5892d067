"""``foreclick score``: a file through the pipeline's own core, without a broker."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from stream.cli.options import (
    Columns,
    Delimiter,
    Format,
    Json,
    Limit,
    Model,
    NoHeader,
    Order,
    TimeFormat,
    finish,
    progress,
    tell_left_out,
)

if TYPE_CHECKING:
    from stream.scoring import Counts
    from stream.stage import Message


def register(app: typer.Typer) -> None:
    """Add ``score``."""
    app.command(
        epilog="Example: foreclick score clicks.jsonl.gz --out predictions.jsonl",
        help="Score a file without a broker.",
    )(score)


def score(
    file: Annotated[str, typer.Argument(help="A log, plain or .gz; - is standard input.")],
    *,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            help="Where predictions go, a line an event; - is standard output, the default without --alerts.",
        ),
    ] = None,
    alerts: Annotated[
        str | None,
        typer.Option("--alerts", help="Where alerts about fraud go, a line each; - is standard output."),
    ] = None,
    target_fpr: Annotated[
        float, typer.Option("--target-fpr", help="Share of honest users that alerts may flag.")
    ] = 0.01,
    rules: Annotated[
        Path | None, typer.Option("--rules", help="TOML of limits for --alerts; the shipped one by default.")
    ] = None,
    dead_letters: Annotated[
        Path | None, typer.Option("--dead-letters", help="Where rejected records go, with their reasons.")
    ] = None,
    churn_alerts: Annotated[
        str | None,
        typer.Option("--churn-alerts", help="Where alerts about silence and return go, a line an alert."),
    ] = None,
    model: Model = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default=False)] = None,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    order: Order = "time",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Write the predictions that the pipeline would make for the same events in the same order, and the alerts.

    A prediction's source names the file as topic, partition 0, and the record's place in that order as offset.
    With --alerts and without --out no model runs.
    """
    from models.registry import bundled, load_artefact
    from models.runtime import StepEngine
    from stream.errors import ConfigurationError
    from stream.files import read_log
    from stream.fraud_alerts import usual_of
    from stream.fraud_rules import read_rules
    from stream.offline import records_of, score_batches
    from stream.offline_alerts import log_alerts
    from stream.settings import load_settings
    from stream.silence import EXPECTED, RETURNED

    if churn_alerts is not None and order != "time":
        raise ConfigurationError(
            "--churn-alerts needs --order time: silence is measured by the events of others."
        )
    if out is None and alerts is None and churn_alerts is None:
        out = "-"
    _check_one_standard_output({"--out": out, "--alerts": alerts, "--churn-alerts": churn_alerts})
    settings = load_settings(model=model, device=device, churn__alerts=churn_alerts is not None)
    limits = read_rules(rules)
    no_model = out is None and churn_alerts is None
    named = settings.model is not None and alerts is not None
    artefact = None if no_model and not named else load_artefact(settings.model or bundled())
    # A model of the shop knows what is usual there; without one the log's own users are each other's measure.
    usual = usual_of(artefact) if named and artefact is not None else None
    if no_model:
        artefact = None
    engine = None if artefact is None else StepEngine(artefact, device=settings.device)
    began = time.monotonic()
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
    gc.freeze()  # the file's records stay to the end: looking at them again and again takes a third of the time
    topic = "stdin" if file == "-" else Path(file).name
    tally = _Tally(churn=Counter({EXPECTED: 0, RETURNED: 0}))
    found = None
    if alerts is not None:
        with progress("engagements watched", None) as watched:
            found = log_alerts(
                log.records,
                settings,
                topic,
                target_fpr=target_fpr,
                limits=limits,
                reference=usual,
                advance=watched,
            )
    with (
        written(out) as predicted,
        written(alerts, "--alerts") as alerted,
        written(None if dead_letters is None else str(dead_letters)) as rejected,
        written(churn_alerts, "--churn-alerts") as churned,
        progress("scored", len(log.records)) as advance,
    ):
        if found is not None:
            alerted.writelines(alert.as_json() + b"\n" for alert in found.alerts)
        if artefact is not None and engine is not None:
            for rendered in score_batches(records_of(log.records), settings, artefact, engine, topic):
                tally.add(rendered.counts)
                messages = rendered.messages
                predicted.writelines(_lines(messages.get(settings.predictions_topic, ())))
                churned.writelines(_lines(messages.get(settings.alerts_churn_topic, ())))
                _write_rejected(messages.get(settings.dead_letters_topic, ()), rejected)
                advance(tally.events)
        elif found is not None:
            # The model's pass, which rejects the same records, does not take place.
            tally.events = found.events
            tally.reasons = _write_rejected(found.rejected, rejected)
    seconds = time.monotonic() - began
    result: dict[str, Any] = {
        "events_in": tally.events,
        "predictions": tally.predictions,
        "dead_letters": dict(tally.reasons),
        "duplicates_dropped": tally.duplicates,
        "late": tally.late,
        **({} if churn_alerts is None else {"churn_alerts": dict(tally.churn)}),
        "format": log.format,
        "model": None if artefact is None else f"{artefact.name}/{artefact.version}",
        "events_per_s": round(tally.events / max(seconds, 1e-9), 1),
    }
    orders = None if found is None else asdict(found.orders)
    if found is not None:
        result |= {"alerts": len(found.alerts), "orders": orders}
    if as_json:
        finish(result, "", as_json)
        return
    rejections = ", ".join(f"{reason} {count}" for reason, count in tally.reasons.most_common()) or "none"
    print(
        f"{tally.events} events ({log.format}), {tally.predictions} predictions, {tally.duplicates} repeated ids "
        f"dropped; rejected: {rejections}; {result['events_per_s']:.0f} events/s",
        file=sys.stderr,
    )
    if orders is not None:
        fates = ", ".join(f"{count} {fate.replace('_', ' ')}" for fate, count in orders.items())
        print(f"{result['alerts']} alerts; orders: {fates}", file=sys.stderr)


@dataclass
class _Tally:
    """What became of the records of a file."""

    churn: Counter[str]
    events: int = 0
    predictions: int = 0
    duplicates: int = 0
    late: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, counts: Counts) -> None:
        self.events += counts.events
        self.predictions += counts.predictions
        self.duplicates += counts.duplicates
        self.late += counts.late
        self.reasons.update(counts.dead_letters)
        self.churn.update(counts.alerts)


def _check_one_standard_output(paths: dict[str, str | None]) -> None:
    from stream.errors import ConfigurationError

    flags = [flag for flag, path in paths.items() if path == "-"]
    if len(flags) > 1:
        raise ConfigurationError(
            f"{' and '.join(flags[:2])} are both standard output. Name a file for one of them."
        )


def _lines(messages: Iterable[Message]) -> Iterator[bytes]:
    return (value + b"\n" for _, value, _ in messages if value is not None)


def _write_rejected(messages: Iterable[Any], rejected: IO[bytes]) -> Counter[str]:
    """Dead letters as lines; how many there were of each reason."""
    from stream.dead_letter_topic import described
    from stream.dead_letters import parse

    reasons: Counter[str] = Counter()
    for key, value, headers in messages:
        if letter := parse(headers):
            reasons[letter.reason] += 1
            rejected.write(json.dumps(described(key, value, letter)).encode() + b"\n")
    return reasons


@contextmanager
def written(path: str | None, flag: str = "--out") -> Iterator[IO[bytes]]:
    """A file that appears whole or not at all; ``-`` is standard output, None swallows.

    Raises:
        InputFileError: it cannot be written.
    """
    from stream.errors import InputFileError

    if path is None:
        with open(os.devnull, "wb") as nowhere:
            yield nowhere
        return
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path).resolve()  # a link stays a link: what it leads to is replaced
    if target.exists() and not target.is_file() and not target.is_dir():
        # A pipe or a device (/dev/null) must be written into: renaming a file over it would destroy it.
        with target.open("wb") as stream:
            yield stream
        return
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as stream:
            yield stream
        draft.replace(target)
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be written: {error.strerror}. Name another file with {flag}."
        ) from error
    finally:
        draft.unlink(missing_ok=True)
