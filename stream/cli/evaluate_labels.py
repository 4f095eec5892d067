"""``foreclick evaluate-labels``: what labels are worth, cross-fitted by user, beside other learners."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from stream.cli.options import (
    Columns,
    Delimiter,
    Format,
    Json,
    LabelFile,
    LeastLabels,
    Limit,
    NoHeader,
    Order,
    Positive,
    TimeFormat,
    finish,
    read_logs,
)


def register(app: typer.Typer) -> None:
    """Add ``evaluate-labels``."""
    app.command(
        "evaluate-labels",
        epilog="Example: foreclick evaluate-labels log.csv.gz --folds 5 "
        "--columns user=user_id,time=timestamp,action=event_type,label=label,extra.value=value",
        help="Measure the fake_order head on a labelled log, cross-fitted by user.",
    )(evaluate_labels)


def evaluate_labels(
    files: Annotated[list[str], typer.Argument(help="Logs, plain or .gz; - is standard input.")],
    *,
    folds: Annotated[
        int, typer.Option("--folds", min=2, help="Parts of the users, each scored by the others'.")
    ] = 5,
    labels: LabelFile = None,
    positive: Positive = None,
    least_labels: LeastLabels = 20,
    extra: Annotated[
        str | None,
        typer.Option("--extra", help="Numbers of the events' extra to read; by default those of --columns."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="LightGBM and logistic regression beside it.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the trees.")] = 1,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    order: Order = "time",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Every labelled user is scored once, after its last event, by a head that saw none of its fold.

    Intervals are 95 %, by resampling users; differences are paired. No method sees hour, weekday or date.
    """
    from models.evaluation.comparison import Figures
    from models.evaluation.labelled import HEAD, add_fake_order, cross_fitted_fake_order
    from stream.cli.evaluate import sentence, shown
    from stream.cli.train import extras_to_read
    from stream.errors import ConfigurationError, InputFileError
    from stream.labels import known_labels
    from stream.training_log import training_log

    logs = read_logs(
        files,
        format,
        columns=columns,
        delimiter=delimiter,
        time_format=time_format,
        header=not no_header,
        order=order,
        limit=limit,
    )
    known = known_labels(logs, labels, positive)
    if known is None:
        raise ConfigurationError(
            "There are no labels: name their column with label= in --columns, or a file with --labels."
        )
    if known.lacking:
        raise InputFileError(f"{known.lacking} There is nothing to measure.")
    folded = training_log(logs, extras=extras_to_read(extra, columns, labelled=True), labels=known)

    def tell(doing: str) -> None:
        print(doing, file=sys.stderr, flush=True)

    found = cross_fitted_fake_order(
        folded, folds, seed=seed, least_labels=least_labels, with_baselines=baselines, tell=tell
    )
    figures = Figures(HEAD)
    add_fake_order(figures, found.own, found.others, found.label_U)
    result: dict[str, Any] = {
        "files": list(folded.files),
        "folds": folds,
        "users": len(found.label_U),
        "positive": int(found.label_U.sum()),
        "positive_labels": list(known.positive),
        "extra": list(folded.extras),
        "metrics": figures.entries(),
        "differences": figures.differences(),
        "verdicts": figures.verdicts(),
    }
    lines = [
        f"{result['users']} labelled users, {result['positive']} positive ({', '.join(known.positive)}); {folds} folds"
    ]
    lines += [f"{each['metric']:9} {each['name']:20} {shown(each)}" for each in result["metrics"]]
    lines += [f"{each['metric']:9} {each['name']:40} {shown(each)}" for each in result["differences"]]
    lines += [sentence(HEAD, verdict) for verdict in result["verdicts"]]
    finish(result, "\n".join(lines), as_json)
