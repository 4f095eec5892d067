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
from dataclasses import asdict
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
    from stream.stage import Rendered


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
    from stream.dead_letter_topic import described
    from stream.dead_letters import parse
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
    outputs = {"--out": out, "--alerts": alerts, "--churn-alerts": churn_alerts}
    to_standard_output = [flag for flag, path in outputs.items() if path == "-"]
    if len(to_standard_output) > 1:
        raise ConfigurationError(
            f"{' and '.join(to_standard_output[:2])} are both standard output. Name a file for one of them."
        )
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
    events = predictions = duplicates = late = 0
    reasons: Counter[str] = Counter()
    churn_counts: Counter[str] = Counter({EXPECTED: 0, RETURNED: 0})
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
        batches: Iterable[Rendered] = ()
        if artefact is not None and engine is not None:
            batches = score_batches(records_of(log.records), settings, artefact, engine, topic)
        elif found is not None:
            # The model's pass, which rejects the same records, does not take place.
            events = found.events
            for refused in found.rejected:
                if letter := parse(refused[2]):
                    reasons[letter.reason] += 1
                    rejected.write(json.dumps(described(*refused[:2], letter)).encode() + b"\n")
        for rendered in batches:
            counts = rendered.counts
            events += counts.events
            predictions += counts.predictions
            duplicates += counts.duplicates
            late += counts.late
            reasons.update(counts.dead_letters)
            for _, value, _ in rendered.messages.get(settings.predictions_topic, ()):
                predicted.write(value + b"\n")  # type: ignore[operator]
            churn_counts.update(counts.alerts)
            for _, value, _ in rendered.messages.get(settings.alerts_churn_topic, ()):
                churned.write(value + b"\n")  # type: ignore[operator]
            for message in rendered.messages.get(settings.dead_letters_topic, ()):
                key, value, headers = message
                if letter := parse(headers):
                    rejected.write(json.dumps(described(key, value, letter)).encode() + b"\n")
            advance(events)
    seconds = time.monotonic() - began
    result: dict[str, Any] = {
        "events_in": events,
        "predictions": predictions,
        "dead_letters": dict(reasons),
        "duplicates_dropped": duplicates,
        "late": late,
        **({} if churn_alerts is None else {"churn_alerts": dict(churn_counts)}),
        "format": log.format,
        "model": None if artefact is None else f"{artefact.name}/{artefact.version}",
        "events_per_s": round(events / max(seconds, 1e-9), 1),
    }
    if found is not None:
        result |= {"alerts": len(found.alerts), "orders": asdict(found.orders)}
    if as_json:
        finish(result, "", as_json)
    else:
        rejections = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none"
        print(
            f"{events} events ({log.format}), {predictions} predictions, {duplicates} repeated ids dropped; rejected: "
            f"{rejections}; {result['events_per_s']:.0f} events/s",
            file=sys.stderr,
        )
        if found is not None:
            counts_by_fate = ", ".join(
                f"{count} {fate.replace('_', ' ')}" for fate, count in asdict(found.orders).items()
            )
            print(f"{len(found.alerts)} alerts; orders: {counts_by_fate}", file=sys.stderr)


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
