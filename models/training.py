"""From a training log to a model folder.

The loss counts every event once, whatever the length of its user's history. Sequences run in chunks of 64 events
with the state carried on, so long histories are learned from whole and gradients reach 64 events back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import calibration
from models.anomaly import Reference
from models.columns import Columns
from models.errors import TrainingError
from models.evaluation import mean_interval, run, scored
from models.features import HASH_BUCKETS, FeatureSpec, Inputs, inputs, numeric_width, raw_inputs
from models.network import TRUNKS, Architecture, Network
from models.registry import DEFAULT_CHURN_HORIZON_S, describe, load_artefact, save_artefact, unsaved
from models.runtime import StepEngine
from models.training_log import (
    TrainingLog,
    check,
    frequent_categories,
    log_price_medians,
    targets_of,
    windows_before,
)
from models.vocabulary import CategoryVocabulary

CHUNK = 64
USERS_A_BATCH = 32
LEARNING_RATE = 4e-3
PATIENCE = 5
CLIP_NORM = 1.0
DROPOUT = 0.1
# A frequent category is read as an unseen one this often, so that the fallback embeddings learn something.
CATEGORY_DROPOUT = 0.05
WEIGHTS = {"action": 1.0, "category": 0.3, "gap": 0.3, "purchase": 0.5}

Progress = Callable[[int, float, float, float], None]


@dataclass(frozen=True)
class _Sequences:
    """Tensors of N events, each user's contiguous; ``first`` and ``length`` a user."""

    inputs: Inputs
    bucket_N: Tensor
    action_N: Tensor
    code_N: Tensor
    index_N: Tensor
    codes_before_NW: Tensor
    index_before_NW: Tensor
    follows_N: Tensor
    log_gap_N: Tensor
    purchase_N: Tensor
    purchase_known_N: Tensor
    first: NDArray[np.int64]
    length: NDArray[np.int64]


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
    torch.set_num_threads(
        1
    )  # sums split over threads round differently: one thread keeps training repeatable
    torch.manual_seed(seed)
    fit, tune = log.of_users(0, bounds[0]), log.of_users(*bounds)
    spec = fit_features(log, fit)
    sizes = Architecture(architecture, hidden, n_actions=len(log.actions), n_categories=len(spec.categories))
    network = Network(sizes)
    purchase = log.actions.names.index("purchase") if "purchase" in log.actions.names else -1
    curve = _fit(
        network,
        _sequences(fit, spec, purchase),
        _sequences(tune, spec, purchase),
        epochs=epochs,
        seed=seed,
        progress=progress,
    )
    divisor = _calibrate(network, _sequences(tune, spec, purchase))

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
    spec = FeatureSpec(log.actions, categories, log.utc_offset_s, medians, blank, blank)
    x_NF = raw_inputs(fit, spec).x_NF[: len(fit["row"])]
    mean, sd = x_NF.mean(dim=0), x_NF.std(dim=0, correction=0)
    # A number that never changes in training keeps its unit, so that the first change is no explosion.
    sd = torch.where(sd < 1e-3, torch.ones_like(sd), sd)
    return FeatureSpec(log.actions, categories, log.utc_offset_s, medians, mean.numpy(), sd.numpy())


def _sequences(columns: Columns, spec: FeatureSpec, purchase: int) -> _Sequences:
    target = targets_of(columns, purchase)
    before = windows_before(columns)
    index = spec.categories.index_of
    first = np.flatnonzero(columns["wave"] == 0)
    hashed = len(spec.categories) + 1 + (columns["category"] % HASH_BUCKETS).astype(np.int64)
    tensor = torch.from_numpy
    return _Sequences(
        inputs=inputs(columns, spec),
        bucket_N=tensor(np.where(columns["category"] != 0, hashed, 0)),
        action_N=tensor(columns["action"].astype(np.int64)),
        code_N=tensor(columns["category"].view(np.int32)),
        index_N=tensor(index(columns["category"])),
        codes_before_NW=tensor(before.view(np.int32)),
        index_before_NW=tensor(index(before)),
        follows_N=tensor(target.follows),
        log_gap_N=tensor(target.log_gap_s),
        purchase_N=tensor(target.purchase.astype(np.float32)),
        purchase_known_N=tensor(target.purchase_known & (purchase >= 0)),
        first=first,
        length=np.diff(np.append(first, len(columns["row"]))),
    )


def _fit(
    network: Network, fit: _Sequences, tune: _Sequences, *, epochs: int, seed: int, progress: Progress | None
) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    updates = max(1, epochs * sum(1 for _ in _chunks(fit, np.random.default_rng(seed))))
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=updates + 1, pct_start=0.1
    )
    best, best_weights, since = float("inf"), network.state_dict(), 0
    curve: list[dict[str, float]] = []
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        network.train()
        losses, events = 0.0, 0
        state, last = torch.zeros(0), -1
        for users, event_TB, held_TB in _chunks(fit, rng):
            if users[0] != last:
                state, last = torch.zeros(len(users), network.trunk.state_width), users[0]
            loss, count, state = _loss(network, fit, event_TB, held_TB, state.detach())
            optimiser.zero_grad()
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimiser.step()
            if schedule.last_epoch < updates:
                schedule.step()
            losses, events = losses + float(loss.detach()), events + count
        seconds = time.perf_counter() - started
        tuning = _tuning_loss(network, tune)
        if not np.isfinite(losses) or not np.isfinite(tuning):
            raise TrainingError(
                f"The loss is not finite in epoch {epoch}. Look for absurd prices or times in the log, or choose "
                f"another --seed."
            )
        curve.append({"epoch": epoch, "loss": round(losses / events, 5), "tuning_loss": round(tuning, 5)})
        if progress is not None:
            progress(epoch, losses / events, tuning, events / seconds)
        if tuning < best - 1e-4:
            best, since = tuning, 0
            best_weights = {name: values.clone() for name, values in network.state_dict().items()}
        else:
            since += 1
            if since >= PATIENCE:
                break
    network.load_state_dict(best_weights)
    network.eval()
    return curve


def _chunks(
    part: _Sequences, rng: np.random.Generator | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Users of similar length in chunks of 64 events: users, event numbers (T, B), and which are real.

    The chunks of a batch follow each other, so that its state can be carried on. Without ``rng`` the order is fixed.
    """
    jitter = rng.random(len(part.length)) if rng else np.zeros(len(part.length))
    order = np.argsort(np.log2(part.length) + jitter, kind="stable")
    batches = [order[at : at + USERS_A_BATCH] for at in range(0, len(order), USERS_A_BATCH)]
    for batch in rng.permutation(len(batches)) if rng else range(len(batches)):
        users = batches[batch]
        for start in range(0, int(part.length[users].max()), CHUNK):
            stop = min(start + CHUNK, int(part.length[users].max()))
            turn = np.arange(start, stop)[:, None]
            held = turn < part.length[users]
            yield users, np.where(held, part.first[users] + turn, part.first[users]), held


def _loss(
    network: Network,
    part: _Sequences,
    event_TB: NDArray[np.int64],
    held_TB: NDArray[np.bool_],
    state_BS: Tensor,
) -> tuple[Tensor, int, Tensor]:
    """The summed weighted loss of a chunk, its number of events, and the state to carry on."""
    T, B = event_TB.shape
    event_N = torch.from_numpy(event_TB.ravel())
    category = part.inputs.category_N[event_N]
    if network.training:
        hidden_one = torch.rand(len(event_N)) < CATEGORY_DROPOUT
        category = torch.where(hidden_one, part.bucket_N[event_N], category)
    chosen = Inputs(part.inputs.x_NF[event_N], part.inputs.action_N[event_N], category)
    x_TBF = network.embed(chosen).view(T, B, -1)
    hidden_TBH, state = network.trunk(x_TBF, state_BS)
    # The prediction of an event is made from the state before it, of its gap and its session's end from after.
    before_TBH = torch.cat([state_BS[None, :, : network.trunk.hidden], hidden_TBH[:-1]])
    held = torch.from_numpy(held_TB.ravel()).nonzero()[:, 0]
    real = event_N[held]
    before = _dropped(network, before_TBH.reshape(T * B, -1)[held])
    after = _dropped(network, hidden_TBH.reshape(T * B, -1)[held])
    terms = _terms(network, part, real, before, after)
    total = sum((WEIGHTS[name] * values.sum() for name, values in terms.items()), torch.zeros(()))
    return total, len(real), state


def _dropped(network: Network, hidden_NH: Tensor) -> Tensor:
    return torch.nn.functional.dropout(hidden_NH, DROPOUT, network.training)


def _terms(
    network: Network, part: _Sequences, event_N: Tensor, before_NH: Tensor, after_NH: Tensor
) -> dict[str, Tensor]:
    """Nats of each head over some events; a head is silent where its answer is unknown."""
    heads = network.heads
    codes_NW = part.codes_before_NW[event_N]
    held_NW = codes_NW != 0
    out = heads.read(heads.small(before_NH), held_NW, held_NW.any(dim=1))
    action = torch.nn.functional.cross_entropy(out.action_NA, part.action_N[event_N], reduction="none")

    named = part.code_N[event_N] != 0
    vocabulary, pointer = heads.mix(heads.category(before_NH), out.slot_NW, part.index_before_NW[event_N])
    pointed = codes_NW == part.code_N[event_N, None]
    by_vocabulary = vocabulary.gather(1, part.index_N[event_N, None])[:, 0]
    probability = (1 - out.share_N) * by_vocabulary + out.share_N * (pointer * pointed).sum(dim=1)
    category = -torch.log(probability.clamp_min(1e-9))[named]

    # Gap and purchase do not look at the window: which one is given does not matter.
    later = heads.read(heads.small(after_NH), held_NW, held_NW.any(dim=1))
    log_gap, follows = part.log_gap_N[event_N], part.follows_N[event_N]
    silent = -torch.log(later.gap.survival(log_gap).clamp_min(1e-9))
    gap = torch.where(follows, -later.gap.log_likelihood(log_gap), silent)

    known = part.purchase_known_N[event_N]
    purchase = torch.nn.functional.binary_cross_entropy_with_logits(
        later.purchase_N[known], part.purchase_N[event_N][known], reduction="none"
    )
    return {"action": action, "category": category, "gap": gap, "purchase": purchase}


@torch.no_grad()
def _tuning_loss(network: Network, tune: _Sequences) -> float:
    """Weighted nats an event of the tuning users, without dropout."""
    network.eval()
    total, events = 0.0, 0
    state, last = torch.zeros(0), -1
    for users, event_TB, held_TB in _chunks(tune, None):
        if users[0] != last:
            state, last = torch.zeros(len(users), network.trunk.state_width), users[0]
        loss, count, state = _loss(network, tune, event_TB, held_TB, state)
        total, events = total + float(loss), events + count
    return total / events


@torch.no_grad()
def _calibrate(network: Network, tune: _Sequences) -> float:
    """Fit the temperature of the next action on the tuning users' later events, and apply it."""
    logits, actions = [], []
    state, last = torch.zeros(0), -1
    for users, event_TB, held_TB in _chunks(tune, None):
        if users[0] != last:
            state, last = torch.zeros(len(users), network.trunk.state_width), users[0]
        T, B = event_TB.shape
        event_N = torch.from_numpy(event_TB.ravel())
        chosen = Inputs(
            tune.inputs.x_NF[event_N], tune.inputs.action_N[event_N], tune.inputs.category_N[event_N]
        )
        hidden_TBH, state = network.trunk(network.embed(chosen).view(T, B, -1), state)
        held = torch.from_numpy(held_TB.ravel()) & tune.follows_N[event_N]
        out = network.heads.small(hidden_TBH.reshape(T * B, -1)[held])[:, : network.heads.n_actions]
        logits.append(out)
        actions.append(tune.action_N[event_N[held] + 1])
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
