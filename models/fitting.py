"""The epochs of training: gradients from the users that are fitted on, and when to stop from the tuning users."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import cos, isfinite, pi
from typing import Any

import numpy as np
import torch

from models.errors import TrainingError
from models.losses import WEIGHTS, HeadWeights, head_terms, stopping_loss
from models.network import Network
from models.sequences import Sequences, chunks_of, readings

LEARNING_RATE = 4e-3
WARM_UP = 0.1
PATIENCE = 5
LEAST_GAIN = 1e-4
CLIP_NORM = 1.0

Progress = Callable[[int, float, float, float], None]


def fit_network(
    network: Network, fit: Sequences, tune: Sequences, *, epochs: int, seed: int, progress: Progress | None
) -> list[dict[str, Any]]:
    """Fit in place, to the weights of the epoch that the tuning users liked best.

    Returns:
        The curve: an entry an epoch.

    Raises:
        TrainingError: the loss is not finite.
    """
    weights = HeadWeights()
    optimiser = torch.optim.Adam([*network.parameters(), *weights.parameters()], lr=LEARNING_RATE)
    best, best_weights, since = float("inf"), _copy(network), 0
    curve: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        loss = _fit_epoch(network, weights, optimiser, fit, epoch=epoch, epochs=epochs, seed=seed)
        seconds = time.perf_counter() - started
        nats = tuning_nats(network, tune)
        tuning = stopping_loss(nats)
        if not isfinite(loss) or not isfinite(tuning):
            raise TrainingError(
                f"The loss is not finite in epoch {epoch}. Look for absurd prices or times in the log, or choose "
                f"another --seed."
            )
        curve.append(
            {
                "epoch": epoch,
                "loss": round(loss, 5),
                "tuning_loss": round(tuning, 5),
                "tuning_nats": {name: round(value, 5) for name, value in nats.items()},
                "head_weights": weights.as_dict(),
            }
        )
        if progress is not None:
            progress(epoch, loss, tuning, int(fit.length.sum()) / seconds)
        if tuning < best - LEAST_GAIN:
            best, best_weights, since = tuning, _copy(network), 0
        else:
            since += 1
            if since >= PATIENCE:
                break
    network.load_state_dict(best_weights)
    network.eval()
    return curve


def learning_rate(done: float) -> float:
    """Up by a cosine over the first tenth of training, down by another one to nearly nothing at its end.

    Args:
        done: share of training, 0 to 1.
    """
    if done < WARM_UP:
        return LEARNING_RATE * (0.04 + 0.96 * 0.5 * (1 - cos(pi * done / WARM_UP)))
    return LEARNING_RATE * 0.5 * (1 + cos(pi * (done - WARM_UP) / (1 - WARM_UP)))


def _fit_epoch(
    network: Network,
    weights: HeadWeights,
    optimiser: torch.optim.Optimizer,
    fit: Sequences,
    *,
    epoch: int,
    epochs: int,
    seed: int,
) -> float:
    """One pass over the events; returns the mean loss, with the heads' starting weights."""
    # Chances of their own for each epoch: it runs alike whether or not the epochs before ran in this process.
    torch.manual_seed(seed * 1_000_003 + epoch)
    chunks = chunks_of(fit, np.random.default_rng([seed, epoch]))
    network.train()
    total, events = 0.0, 0
    for turn, reading in enumerate(readings(network, fit, chunks)):
        terms = head_terms(network, fit, reading)
        loss = weights(terms, len(reading.event_N))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate((epoch - 1 + turn / len(chunks)) / epochs)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimiser.step()
        total += sum(WEIGHTS[name] * float(nats.detach().sum()) for name, nats in terms.items())
        events += len(reading.event_N)
    return total / events


@torch.no_grad()
def tuning_nats(network: Network, tune: Sequences) -> dict[str, float]:
    """Nats of each head summed over the events where it speaks, a tuning event, without dropout."""
    network.eval()
    total, events = dict.fromkeys(WEIGHTS, 0.0), 0
    for reading in readings(network, tune, chunks_of(tune, None)):
        for name, nats in head_terms(network, tune, reading).items():
            total[name] += float(nats.sum())
        events += len(reading.event_N)
    return {name: nats / events for name, nats in total.items()}


def _copy(network: Network) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in network.state_dict().items()}
