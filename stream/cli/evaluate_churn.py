"""``foreclick evaluate-churn``: who stays away, said before it is known, beside recency and usual learners."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stream.cli.options import (
    Columns,
    Delimiter,
    Format,
    Json,
    Limit,
    NoHeader,
    TimeFormat,
    finish,
    read_logs,
)


def register(app: typer.Typer) -> None:
    """Add ``evaluate-churn``."""
    app.command(
        "evaluate-churn",
        epilog="Example: foreclick evaluate-churn orders.csv.gz --format online_retail --horizon-days 90",
        help="Measure who stays away, asked at a moment whose answers the log still holds.",
    )(evaluate_churn)


def evaluate_churn(
    files: Annotated[list[str], typer.Argument(help="Logs, plain or .gz; - is standard input.")],
    *,
    horizon_days: Annotated[
        float, typer.Option("--horizon-days", min=0.01, help="Who has not come back by then stayed away.")
    ] = 90.0,
    cut: Annotated[
        str | None,
        typer.Option(
            "--cut",
            help="When it is asked (ISO 8601, UTC unless it says otherwise, or unix milliseconds); by default one "
            "horizon before the log's end.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="A model trained with --split-time at the cut or before it; without, the return odds that train would "
            "fit are measured.",
            show_default=False,
        ),
    ] = None,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """What is fitted has its answers before the cut; customers may recur. Intervals are 95 %, by customer, paired."""
    from models.evaluation.churn import evaluated_churn
    from models.registry import load_artefact
    from models.runtime import StepEngine
    from stream.cli.evaluate import sentence, shown
    from stream.cli.train import parsed_time_ms
    from stream.errors import ConfigurationError
    from stream.training_log import training_log

    horizon_s = horizon_days * 86_400
    artefact = None if model is None else load_artefact(model)
    logs = read_logs(
        files,
        format,
        columns=columns,
        delimiter=delimiter,
        time_format=time_format,
        header=not no_header,
        limit=limit,
    )
    spec = None if artefact is None else artefact.features
    folded = training_log(
        logs, actions=None if spec is None else spec.actions, extras=() if spec is None else spec.extras
    )
    end_ms = int(folded.columns["event_time_ms"].max())
    moment_ms = round(end_ms - horizon_s * 1000) if cut is None else parsed_time_ms(cut, "--cut")
    if artefact is not None:
        seen_ms = artefact.manifest["training"].get("to_ms", 0)
        if seen_ms > moment_ms:
            raise ConfigurationError(
                f"Model {artefact.name}/{artefact.version} learned from events until {seen_ms} (Unix ms), after the "
                f"cut at {moment_ms}. Train one with --split-time {moment_ms}."
            )
        if artefact.churn_horizon_s != horizon_s:
            raise ConfigurationError(
                f"Model {artefact.name}/{artefact.version} was trained for {artefact.churn_horizon_s / 86_400:g} days. "
                f"Give --horizon-days {artefact.churn_horizon_s / 86_400:g}."
            )
    names = folded.actions.names
    found = evaluated_churn(
        folded.columns,
        names.index("purchase") if "purchase" in names else -1,
        horizon_s,
        moment_ms,
        engine=None if artefact is None else StepEngine(artefact, device="cpu"),
    )
    figures = found.figures
    result: dict[str, Any] = {
        "files": list(folded.files),
        "horizon_s": horizon_s,
        "cut_ms": found.moment_ms,
        "users": found.users,
        "stayed_away": found.stayed_away,
        "fitted_answers": found.fitted_answers,
        "metrics": figures.entries(),
        "differences": figures.differences(),
        "verdicts": figures.verdicts(),
    }
    lines = [
        f"{found.users} users at {found.moment_ms} (Unix ms), {found.stayed_away} stayed away for {horizon_days:g} "
        f"days; fitted on {found.fitted_answers} earlier answers"
    ]
    lines += [f"{each['metric']:9} {each['name']:20} {shown(each)}" for each in result["metrics"]]
    lines += [f"{each['metric']:9} {each['name']:40} {shown(each)}" for each in result["differences"]]
    lines += [sentence(figures.model, verdict) for verdict in result["verdicts"]]
    finish(result, "\n".join(lines), as_json)
