"""From a training log to a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import calibration
from models.anomaly import Reference
from models.columns import Columns
from models.errors import TrainingError
from models.evaluation import mean_interval, run, scored
from models.features import FeatureSpec, item_buckets, numeric_width, raw_inputs
from models.fitting import Progress, fit_network
from models.network import TRUNKS, Architecture, Network
from models.registry import DEFAULT_CHURN_HORIZON_S, describe, load_artefact, save_artefact, unsaved
from models.runtime import StepEngine
from models.sequences import Sequences, chunks_of, readings, sequences_of
from models.training_log import TrainingLog, check, frequent_categories, log_price_medians
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
    churn_horizon_s: float = DEFAULT_CHURN_HORIZON_S,
    progress: Progress | None = None,
) -> Path:
    """Fit a network on the log's training users and write it as ``<root>/<name>/<version>``.

    Args:
        log: folded events; users with crc32(user id) % 100 below ``bounds[0]`` are fitted on, those below
            ``bounds[1]`` decide when to stop, calibrate and are the anomaly's reference, the rest measure.
        root: the model store.
        name: of the model.
        version: a new one.
        architecture: of the trunk, a name of ``models.network.TRUNKS``.
        hidden: the trunk's units.
        bounds: the two shares.
        seed: of the first weights, of dropout and of the order of users.
        churn_horizon_s: the silence whose probability is the churn probability.
        epochs: at most; training stops when the tuning users' loss has not fallen for 5 epochs.
        progress: called after each epoch with its number from 1, both losses (nats) and events a second.

    Returns:
        The new folder. Equal logs, settings, seed and machine give equal weights.

    Raises:
        TrainingError: the log or the bounds leave nothing to learn from, or the loss is not finite.
        ArtefactError: the version exists.
    """
    check(log, bounds)
    if architecture not in TRUNKS:
        raise TrainingError(f"No architecture {architecture!r}; this build has {', '.join(TRUNKS)}.")
    # Sums split over threads round differently: one thread keeps training repeatable.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    fit, tune = log.of_users(0, bounds[0]), log.of_users(*bounds)
    spec = fit_features(log, fit)
    sizes = Architecture(architecture, hidden, n_actions=len(log.actions), n_categories=len(spec.categories))
    network = Network(sizes)
    purchase = log.actions.names.index("purchase") if "purchase" in log.actions.names else -1
    tuning = sequences_of(tune, spec, purchase)
    curve = fit_network(
        network, sequences_of(fit, spec, purchase), tuning, epochs=epochs, seed=seed, progress=progress
    )
    divisor = _calibrate(network, tuning)

    training = {
        "events": len(fit["row"]),
        "users": int(fit["row"].max()) + 1,
        "bounds": list(bounds),
        "from_ms": int(fit["event_time_ms"].min()),
        "to_ms": int(fit["event_time_ms"].max()),
        "files": list(log.files),
        "sha256": log.digest,
        "seed": seed,
        "curve": curve,
        "temperature": round(divisor, 4),
    }
    blank = Reference.fit(np.zeros(0), np.zeros(0), np.zeros((0, 3), np.float32))
    draft = unsaved(network, describe(name, version, sizes, spec, blank, churn_horizon_s=churn_horizon_s))
    seen = run(StepEngine(draft, device="cpu"), tune)
    reference = Reference.fit(tune["life_events"], seen.surprisal_nats, seen.statistics)
    manifest = describe(
        name, version, sizes, spec, reference, churn_horizon_s=churn_horizon_s, training=training
    )
    manifest["metrics"] = _measure(unsaved(network, manifest), log, bounds)
    folder = save_artefact(root, network, manifest)
    load_artefact(folder)
    return folder


def fit_features(log: TrainingLog, fit: Columns) -> FeatureSpec:
    """Vocabulary, price medians and scaling of the training users."""
    categories = CategoryVocabulary(frequent_categories(fit, log.category_names))
    medians = log_price_medians(fit, categories.index_of(fit["category"]), len(categories))
    width = numeric_width(len(log.actions))
    blank = np.zeros(width, np.float32)
    items = item_buckets(fit)
    spec = FeatureSpec(log.actions, categories, log.utc_offset_s, medians, blank, blank, items)
    x_NF = raw_inputs(fit, spec).x_NF[: len(fit["row"])]
    mean, sd = x_NF.mean(dim=0), x_NF.std(dim=0, correction=0)
    # A number that never changes in training keeps its unit, so that the first change is no explosion.
    sd = torch.where(sd < 1e-3, torch.ones_like(sd), sd)
    return replace(spec, mean=mean.numpy(), sd=sd.numpy())


@torch.no_grad()
def _calibrate(network: Network, tune: Sequences) -> float:
    """Fit the temperature of the next action on the tuning users' later events, and apply it."""
    later_N = torch.ones_like(tune.action_N, dtype=torch.bool)
    later_N[torch.from_numpy(tune.first)] = False
    logits, actions = [], []
    for reading in readings(network, tune, chunks_of(tune, None)):
        held = later_N[reading.event_N]
        logits.append(network.heads.small(reading.before_NH[held])[:, : network.heads.n_actions])
        actions.append(tune.action_N[reading.event_N[held]])
    divisor = calibration.temperature(torch.cat(logits), torch.cat(actions))
    calibration.apply(network, divisor)
    return divisor


def _measure(artefact: Any, log: TrainingLog, bounds: tuple[int, int]) -> dict[str, Any]:
    """Next-action log-loss of tuning and test users, as served."""
    metrics: dict[str, Any] = {}
    for label, first, end in (("tuning", *bounds), ("test", bounds[1], 100)):
        columns = log.of_users(first, end)
        later = scored(columns)
        if later.any():
            loss = run(StepEngine(artefact, device="cpu"), columns).terms[later, 0]
            metrics[label] = mean_interval(loss, columns["row"][later]).as_dict("next_action", "log_loss")
    return metrics
