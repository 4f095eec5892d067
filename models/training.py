"""From a training log to a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from models.anomaly import Reference
from models.baselines import unigram
from models.calibration import calibrate
from models.checkpoint import Checkpoint
from models.columns import Columns
from models.errors import TrainingError
from models.evaluation import mean_interval, run
from models.features import (
    FEATURES,
    FeatureSpec,
    declared,
    item_buckets,
    numbers_of,
    numeric_width,
    raw_inputs,
)
from models.fitting import Fitting, Progress
from models.labelled import LEAST_LABELS, FittedFakeOrder, fit_fake_order, labelled_part
from models.micro_batch import StepResult
from models.network import TRUNKS, Architecture, Network
from models.registry import (
    DEFAULT_CHURN_HORIZON_S,
    Artefact,
    describe,
    load_artefact,
    refuse_existing,
    save_artefact,
    unsaved,
)
from models.related import lifts_without_own, related_categories
from models.return_odds import fit_return_odds
from models.runtime import StepEngine
from models.sequences import sequences_of
from models.shortcut import fit_linear, mix_in
from models.split import Split, scored_events, split_of
from models.teaching import Teaching, best_mixture, teach
from models.training_log import (
    TrainingLog,
    check_bounds,
    check_parts,
    frequent_categories,
    log_price_medians,
)
from models.vocabulary import CategoryVocabulary


def train(
    log: TrainingLog,
    root: Path,
    *,
    name: str = "shop-lstm",
    version: str = "1",
    architecture: str = "lstm",
    hidden: int = 64,
    bounds: tuple[int, int] = (60, 70),
    epochs: int = 30,
    seed: int = 1,
    split_time_ms: int | None = None,
    churn_horizon_s: float = DEFAULT_CHURN_HORIZON_S,
    device: str = "cpu",
    blend: bool = False,
    resume: bool = False,
    least_labels: int = LEAST_LABELS,
    fraud: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fit a network on the log's training users and write it as ``<root>/<name>/<version>``.

    After every epoch a checkpoint lies in a hidden folder beside the future version; it goes when that is written.

    Args:
        log: folded events; users with crc32(user id) % 100 below ``bounds[0]`` are fitted on, those below
            ``bounds[1]`` decide when to stop, calibrate and are the anomaly's reference, the rest measure.
        root: the model store.
        name: of the model.
        version: a new one.
        architecture: of the trunk, a name of ``models.network.TRUNKS``.
        hidden: the trunk's units.
        bounds: the two shares.
        epochs: at most; training stops when the tuning users' loss has not fallen for 5 epochs.
        seed: of the first weights, of dropout and of the order of users.
        split_time_ms: events from this moment on measure, and the users that neither tune nor fit are fitted on
            too; see ``models.split.split_of``.
        churn_horizon_s: the silence whose probability is the churn probability.
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is one.
        blend: learn from soft targets of trees and regression too, see ``models.teaching``.
        resume: go on from the checkpoint of the same settings, if there is one.
        least_labels: labelled users of the rarer kind from which on ``fake_order`` has a probability; the head itself
            is fitted when the log has labels of both kinds among the users that are fitted on.
        fraud: what is usual among the training users, for alerts; kept in the manifest as it is.
        progress: called after each chunk and each epoch.

    Returns:
        The new folder. Equal logs, settings, seed and machine give equal weights, resumed or not.

    Raises:
        TrainingError: the log or the split leaves nothing to learn from, the loss is not finite, the device is
            missing, or the checkpoint is of other settings.
        ArtefactError: the version exists.
    """
    check_bounds(bounds)
    if architecture not in TRUNKS:
        raise TrainingError(f"No architecture {architecture!r}; this build has {', '.join(TRUNKS)}.")
    device = _device(device)
    split = split_of(log, bounds, split_time_ms)
    check_parts(log, bounds, split.fit, split.tune)
    settings = {
        "log": log.digest,
        "events": len(log.columns["row"]),
        "actions": list(log.actions.names),
        "utc_offset_s": log.utc_offset_s,
        "features": declared(log.extras),
        "architecture": architecture,
        "hidden": hidden,
        "bounds": bounds,
        "split_time_ms": split_time_ms,
        "epochs": epochs,
        "seed": seed,
        "device": device,
        "blend": blend,
    }
    checkpoint = Checkpoint.beside(root, name, version, settings)
    if (root / name / version).exists():
        checkpoint.remove()
        refuse_existing(root, name, version)

    # Sums split over threads round differently: one thread, also of the teachers' and other fits' linear algebra,
    # keeps training repeatable where there are more cores or fewer.
    torch.set_num_threads(1)
    threadpool_limits(limits=1)
    torch.manual_seed(seed)
    spec = fit_features(log, split.fit)
    sizes = Architecture(
        architecture,
        hidden,
        n_actions=len(log.actions),
        n_categories=len(spec.categories),
        n_extras=len(log.extras),
    )
    network = Network(sizes)
    network.begin_from(spec)
    related = related_categories(split.fit, spec.categories)
    network.heads.begin_from(related)
    network.to(device)
    tuning = sequences_of(split.tune, spec, split.purchase_code, related.log_lift[None]).to(device)
    lifts = lifts_without_own(split.fit, spec.categories)
    fitted = sequences_of(split.fit, spec, split.purchase_code, lifts)
    teaching = teach(split, seed) if blend else None
    if teaching is not None:
        fitted = fitted.taught_by(teaching)
    fitting = Fitting(network, epochs=epochs, seed=seed)
    if resume:
        fitting.resume(checkpoint)
    fitted = fitted.to(device)
    while not fitting.finished:
        fitting.run_epoch(fitted, tuning, progress)
        fitting.save(checkpoint)
    network.load_state_dict(fitting.best_weights)
    network.eval()
    linear = fit_linear(network, fitted, tuning, fitting.told_of_linear(fitted, progress))
    mixed = None if linear is None else mix_in(network, linear, tuning)
    calibrated = calibrate(network, tuning)
    network.to("cpu")
    fake_order = _fake_order(log, bounds, split_time_ms, spec, seed, least_labels)
    if fake_order is not None:
        network.attach(fake_order.head)
        sizes = network.architecture

    training = {
        "events": len(split.fit["row"]),
        "users": int(split.fit["row"].max()) + 1,
        "bounds": list(bounds),
        "split_time_ms": split_time_ms,
        "from_ms": int(split.fit["event_time_ms"].min()),
        "to_ms": int(split.fit["event_time_ms"].max()),
        "files": list(log.files),
        "sha256": log.digest,
        "seed": seed,
        "device": device,
        "curve": fitting.curve,
        "linear": mixed,
    }
    blank = Reference.fit(np.zeros(0), np.zeros(0), np.zeros((0, 3), np.float32))
    # A median gap is that of gaps that end; how long those may be is what the training users showed.
    longest_gap_s = max(2.0, float(split.fit["gap_ms"].max()) / 1000)
    draft = unsaved(
        network,
        describe(
            name, version, sizes, spec, blank, churn_horizon_s=churn_horizon_s, longest_gap_s=longest_gap_s
        ),
    )
    seen = run(StepEngine(draft, device="cpu"), split.tune)
    if teaching is not None:
        training["blend"] = _blended(seen, teaching, split)
    reference = Reference.fit(split.tune["life_events"], seen.surprisal_nats, seen.statistics)
    manifest = describe(
        name,
        version,
        sizes,
        spec,
        reference,
        churn_horizon_s=churn_horizon_s,
        longest_gap_s=longest_gap_s,
        calibration=calibrated | ({} if fake_order is None else {"fake_order": fake_order.described}),
        training=training,
    )
    # The log's own clock ends where the test begins: no answer comes from there.
    odds = fit_return_odds(split.fit, churn_horizon_s, split.purchase_code)
    manifest["return_odds"] = None if odds is None else odds.as_dict()
    if fraud is not None:
        manifest["fraud"] = fraud
    manifest["metrics"] = _measure(unsaved(network, manifest), split)
    folder = save_artefact(root, network, manifest)
    load_artefact(folder)
    checkpoint.remove()
    return folder


def _fake_order(
    log: TrainingLog,
    bounds: tuple[int, int],
    split_time_ms: int | None,
    spec: FeatureSpec,
    seed: int,
    least_labels: int,
) -> FittedFakeOrder | None:
    """The supervised head of the labelled users; None without labels of both kinds."""
    share = log.shares()
    tuning = (share >= bounds[0]) & (share < bounds[1])
    fitting = share < bounds[0] if split_time_ms is None else ~tuning
    fitted = fit_fake_order(
        labelled_part(log, fitting, split_time_ms),
        labelled_part(log, tuning, split_time_ms),
        spec,
        seed=seed,
        least_labels=least_labels,
    )
    if fitted is not None:
        fitted.described["positive_labels"] = list(log.positive)
    return fitted


def _device(name: str) -> str:
    if name not in {"auto", "cpu", "cuda"}:
        raise TrainingError(f"No device {name!r}. Use auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("There is no CUDA device here. Use --device cpu, or auto.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _blended(seen: StepResult, teaching: Teaching, split: Split) -> dict[str, float]:
    """Next-action log-loss on the tuning users: network, teachers, and the best mixture, which is not served."""
    counts = scored_events(split.tune, split.purchase_code).action
    later = np.flatnonzero(counts)
    own = np.exp(-seen.terms[later, 0])
    action = split.tune["action"][later].astype(np.int64)
    other = teaching.tuning_action_NA[later, action]
    weight, loss = best_mixture(own, other)
    return {
        "network": round(float(-np.log(own).mean()), 5),
        "teachers": round(float(-np.log(np.maximum(other, 1e-7)).mean()), 5),
        "mixture": round(loss, 5),
        "teachers_weight": round(weight, 2),
    }


def fit_features(log: TrainingLog, fit: Columns) -> FeatureSpec:
    """Vocabulary, price medians and scaling of the training users."""
    categories = CategoryVocabulary(frequent_categories(fit, log.category_names))
    medians = log_price_medians(fit, categories.index_of(fit["category"]), len(categories))
    n_actions = len(log.actions)
    blank = np.zeros(numeric_width(n_actions, len(log.extras)), np.float32)
    items = item_buckets(fit)
    share = unigram.probabilities(fit, n_actions).astype(np.float32)
    spec = FeatureSpec(
        log.actions, categories, log.utc_offset_s, medians, blank, blank, items, share, log.extras
    )
    x_NF = raw_inputs(fit, spec).x_NF[: len(fit["row"])]
    mean, sd = x_NF.mean(dim=0), x_NF.std(dim=0, correction=0)
    # A number that never changes in training keeps its unit, so that the first change is no explosion.
    sd = torch.where(sd < 1e-3, torch.ones_like(sd), sd)
    for feature in FEATURES:
        if feature.one_scale:
            at = numbers_of(feature.name, n_actions)
            mean[at], sd[at] = 0.0, x_NF[:, at].square().mean().sqrt().clamp_min(1e-3)
    return replace(spec, mean=mean.numpy(), sd=sd.numpy())


def _measure(artefact: Artefact, split: Split) -> dict[str, Any]:
    """Next-action log-loss of tuning and test users, as served."""
    metrics: dict[str, Any] = {}
    for label, columns, from_ms in (("tuning", split.tune, None), ("test", split.test, split.from_ms)):
        counts = scored_events(columns, split.purchase_code, from_ms).action
        if counts.any():
            loss = run(StepEngine(artefact, device="cpu"), columns).terms[counts, 0]
            metrics[label] = mean_interval(loss, columns["row"][counts]).as_dict("next_action", "log_loss")
    return metrics
