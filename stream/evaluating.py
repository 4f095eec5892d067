"""A model and a log brought together to be measured: read, folded as the worker folds, split by user."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.columns import Columns
from models.evaluation.answers import Answers
from models.evaluation.comparison import Comparison, add_baselines, compare_model, purchase_threshold
from models.evaluation.labelled import BASELINES as LABEL_BASELINES
from models.evaluation.labelled import UserScores, add_fake_order
from models.evaluation.predictions import Predictions, predictions_of, run
from models.labelled import Labelled, labelled_part
from models.registry import Artefact, load_artefact
from models.runtime import StepEngine
from models.split import Split, split_of
from models.training_log import TrainingLog, check_bounds
from stream.errors import ConfigurationError, InputFileError
from stream.files import LogFile, read_log
from stream.formats.tpp import TPP, UNIT_S
from stream.labels import known_labels
from stream.rebuilt import rebuilt_predictions, sample_of_users
from stream.sessions import FoldRules
from stream.settings import Settings
from stream.training_log import training_log


@dataclass(frozen=True)
class Read:
    """A checked model and the users of a log on whom it is measured.

    ``columns``: of the measured users; ``measured``: ``test`` or ``all`` users of the log; ``crossed``: baselines are
    fitted on those of them who are not being measured, fold by fold. ``labelled``: those of the measured users whose
    label is known, if the log has labels; ``fitted``: those whom learners from labels may be fitted on.
    """

    artefact: Artefact
    split: Split
    columns: Columns
    bounds: tuple[int, int] | None
    measured: str
    crossed: bool
    file: str
    digest: str
    format: str
    gap_unit_s: float
    notes: tuple[str, ...]
    labelled: Labelled | None = None
    fitted: Labelled | None = None

    @property
    def method(self) -> str:
        """What the model is called beside the baselines: its architecture."""
        return str(self.artefact.manifest["architecture"]["kind"])

    def described(self) -> dict[str, Any]:
        """What was measured, for programs."""
        return {
            "model": {
                "name": self.artefact.name,
                "version": self.artefact.version,
                "sha256": self.artefact.manifest["weights"]["sha256"],
                "entry": self.method,
            },
            "file": self.file,
            "sha256": self.digest,
            "format": self.format,
            "split": self.measured,
            "bounds": self.bounds,
            "split_time_ms": self.split.from_ms,
            "users": int((self.columns["wave"] == 0).sum()),
            "events": len(self.columns["row"]),
            "gap_unit_s": self.gap_unit_s,
            "actions": list(self.artefact.actions.names),
        }


def read_for(
    model: Path,
    file: str,
    settings: Settings,
    *,
    split: str,
    bounds: tuple[int, int] | None,
    baselines_on: str | None = None,
    labels: Path | None = None,
    positive: str | None = None,
    **options: Any,
) -> Read:
    """Load a model, and the users of a log on whom it can be measured.

    Args:
        model: folder.
        file: a log; ``options`` are those of ``stream.files.read_log``.
        settings: limits of sessions and lateness.
        split: ``test`` or ``all``.
        bounds: two shares; None takes the split that the model was trained with, which may be by time.
        baselines_on: a log of other users, such as the model's, on which the baselines are fitted; needs ``all``.
        labels, positive: a file of labels and which of them are to be found, see ``stream.labels.known_labels``.

    Raises:
        ConfigurationError: an unknown split, or bounds that nobody knows.
        TrainingError: bounds that contradict each other.
        InputFileError: no events, or no test users.
        ArtefactError: the model is missing or damaged.
    """
    if split not in ("test", "all"):
        raise ConfigurationError(f"--split {split!r} is unknown. Use test, or all for a log of other users.")
    artefact = load_artefact(model)
    training = artefact.manifest["training"]
    shares = bounds or tuple(training.get("bounds", ()))
    # Bounds that are named split by user, whatever the model was trained with.
    from_ms = training.get("split_time_ms") if split == "test" and bounds is None else None
    if split == "test" and len(shares) != 2:
        raise ConfigurationError(
            f"Model {artefact.name}/{artefact.version} does not say on which users it was trained. Give --bounds as "
            f"for its training, or --split all if the log is of other users."
        )
    if shares:
        check_bounds(shares)
    if baselines_on is not None and (split != "all" or len(shares) != 2):
        raise ConfigurationError(
            "--baselines-on is for --split all of another log, with the bounds of the model or of --bounds; with "
            "--split test the baselines are fitted on the log itself."
        )
    read = read_log(file, **options)
    rules = FoldRules(settings.session_gap_s * 1000, settings.late_limit_s * 1000)

    def folded(file: LogFile) -> TrainingLog:
        spec = artefact.features
        known = known_labels([file], labels, positive)
        return training_log([file], rules, spec.utc_offset_s, spec.actions, extras=spec.extras, labels=known)

    log = folded(read)
    if baselines_on is None:
        parts = split_of(log, shares if split == "test" else (0, 0), from_ms)
    else:
        parts = replace(split_of(folded(read_log(baselines_on, **options)), shares), test=log.columns)
    columns = parts.test if split == "test" else log.columns
    if from_ms is not None and not (columns["event_time_ms"] >= from_ms).any():
        raise InputFileError(
            f"{read.name} has no event from the model's split time on ({from_ms} Unix ms), and all before it are "
            f"training. Give a later log, or --bounds to split by user."
        )
    if not len(columns["row"]):
        raise InputFileError(
            f"{read.name} has no test users: none of its {len(log.user_ids)} has crc32(user) % 100 from {shares[1]} "
            f"on. Give other --bounds, or --split all if the model was not trained on this log."
        )
    labelled = fitted = None
    if log.given_labels is not None:
        share = log.shares()
        measured = share >= shares[1] if split == "test" and from_ms is None else share >= 0
        labelled = labelled_part(log, measured)
        if shares and (split == "test" or baselines_on is not None):
            fitted = labelled_part(parts.log, parts.log.shares() < shares[0], from_ms)
    return Read(
        artefact=artefact,
        split=parts,
        columns=columns,
        bounds=(shares[0], shares[1]) if split == "test" or baselines_on else None,
        measured=split,
        crossed=split == "all" and baselines_on is None,
        file=Path(read.name).name,
        digest=log.digest,
        format=read.format,
        gap_unit_s=UNIT_S if read.format == TPP.name else 1.0,
        notes=_notes(artefact, log, columns, split),
        labelled=labelled,
        fitted=fitted,
    )


def _notes(artefact: Artefact, log: TrainingLog, columns: Columns, split: str) -> tuple[str, ...]:
    """What a reader of the figures should know of the events."""
    notes = []
    rest = len(artefact.actions) - 1
    other = int((columns["action"] == rest).sum())
    if other:
        notes.append(
            f"{other} of {len(columns['row'])} events have an action that the model does not know; they count as "
            f"`other`."
        )
    if split == "all" and log.digest == artefact.manifest["training"].get("sha256"):
        notes.append(
            "This is the log that the model was trained on: with --split all its figures are not of unseen users. "
            "Use --split test."
        )
    return tuple(notes)


@dataclass(frozen=True)
class Evaluated:
    """The model's predictions of the measured events, what they are worth, and what rebuilding costs if asked."""

    made: Predictions
    comparison: Comparison
    rebuilt: Comparison | None


def evaluated(
    read: Read,
    settings: Settings,
    *,
    with_baselines: bool,
    with_rebuilt: bool = False,
    advance: Callable[[int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Evaluated:
    """Run the model as the worker would, measure it and, if asked, the baselines and the price of rebuilt states."""
    engine = StepEngine(read.artefact, device=settings.device)
    purchase = read.split.purchase_code
    made = predictions_of(engine, read.columns, advance)
    answers = Answers(read.columns, purchase, read.gap_unit_s, read.split.from_ms)
    threshold, how = None, "on the measured users of the other folds (five)"
    if "purchase" not in answers.missing and len(read.split.tune["row"]):
        tuned = predictions_of(engine, read.split.tune)
        threshold = purchase_threshold(Answers(read.split.tune, purchase), tuned.purchase)
        if threshold is not None:
            how = f"on the tuning users: {threshold:.4f}"
    comparison = compare_model(read.method, answers, made, threshold)
    comparison.notes += read.notes
    if "purchase" not in answers.missing:
        comparison.notes.append(
            f"Precision and recall of purchase: {read.method} at the threshold of the greatest F1 {how}; baselines at "
            f"that of the measured users of the other folds."
        )
    if with_baselines:
        add_baselines(comparison, read.split, read.crossed, tell)
    if read.labelled is not None:
        _measure_labels(read, read.labelled, engine, comparison, with_baselines)
    rebuilt = None
    if with_rebuilt:
        if tell is not None:
            tell("states rebuilt from windows")
        rebuilt = _rebuilt(read, engine, settings, threshold)
        comparison.notes += rebuilt.notes
    return Evaluated(made, comparison, rebuilt)


def _measure_labels(
    read: Read, labelled: Labelled, engine: StepEngine, comparison: Comparison, with_baselines: bool
) -> None:
    """The supervised score after each labelled user's last event, beside learners on the same users."""
    if read.artefact.network.fake_order is None:
        comparison.notes.append(
            "fake_order is not measured: the model was trained without labels of both kinds."
        )
        return
    if not min(labelled.users):
        comparison.notes.append(
            "fake_order is not measured: the measured users do not have labels of both kinds."
        )
        return
    last = labelled.last()
    score, probability = run(engine, labelled.columns).fake_order[last].T.astype(np.float64)
    own = UserScores(score, None if np.isnan(probability).any() else probability)
    others = {}
    if with_baselines and read.fitted is not None and min(read.fitted.users) > 0:
        others = {name: said(read.fitted, labelled.columns) for name, said in LABEL_BASELINES.items()}
    add_fake_order(comparison, own, others, labelled.label_N[last])


def _rebuilt(read: Read, engine: StepEngine, settings: Settings, threshold: float | None) -> Comparison:
    """The model with states rebuilt before each event beside itself with carried states, on a sample of the users."""
    sample = sample_of_users(read.columns)
    answers = Answers(sample, read.split.purchase_code, read.gap_unit_s, read.split.from_ms)
    made = rebuilt_predictions(engine, sample, settings.session_gap_s * 1000)
    comparison = compare_model(f"{read.method}_rebuilt", answers, made, threshold)
    carried = predictions_of(engine, sample)
    for head in answers.heads():
        comparison.add(head, f"{read.method}_carried", answers.of_model(head, carried, threshold))
    comparison.notes = [
        f"Rebuilt states were measured on {answers.users} of {int((read.columns['wave'] == 0).sum())} users, "
        f"{len(sample['row'])} events."
    ]
    own = "next_action"
    for each in comparison.differences():
        if (each["head"], each["metric"]) == (own, "log_loss"):
            comparison.notes.append(
                f"A state rebuilt from the {read.artefact.window} events of the window costs {each['value']:+.4f} "
                f"[{each['low']:+.4f}, {each['high']:+.4f}] nats of next-action log-loss against the carried one."
            )
    return comparison


def write_report(folder: Path, result: dict[str, Any], done: Evaluated, read: Read) -> None:
    """Write report.html and metrics.json, each whole or not at all.

    Raises:
        InputFileError: the folder cannot be made or written.
    """
    from models.evaluation.report import page  # draws: a library that takes a while to load

    curve = read.artefact.manifest["training"].get("curve", [])
    files = {
        "metrics.json": json.dumps(result, indent=1) + "\n",
        "report.html": page(result, done.comparison, done.rebuilt, done.made, curve),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            draft = folder / f".{name}.{os.getpid()}.part"
            try:
                draft.write_text(text, "utf-8")
                draft.replace(folder / name)
            finally:
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise InputFileError(
            f"The report cannot be written to {folder}: {error.strerror}. Name another folder with --report."
        ) from error
