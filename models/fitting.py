"""The epochs of training: gradients from the users that are fitted on, and when to stop from the tuning users."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.errors import TrainingError
from models.losses import WEIGHTS, HeadWeights, head_terms, stopping_loss
from models.network import Network
from models.sequences import Sequences, chunks_of, readings

LEARNING_RATE = 8e-3
WARM_UP = 0.1
PATIENCE = 5
LEAST_GAIN = 1e-4
CLIP_NORM = 1.0
# Of the squares of the shortcut's learned weights, nats an event: that of logistic regression with C = 0.01 on 50,000.
SHORTCUT_PENALTY = 2e-3
# The weights that are judged and kept are a running average over about so many updates.
AVERAGED_UPDATES = 50


@dataclass(frozen=True)
class Report:
    """How far training is: within an epoch, and at its end, when ``tuning_loss`` is known.

    ``loss``: nats an event of this epoch so far, with the heads' starting weights. ``events``: of an epoch.
    """

    epoch: int
    epochs: int
    events_done: int
    events: int
    loss: float
    tuning_loss: float | None
    events_per_s: float


Progress = Callable[[Report], None]


class Fitting:
    """Everything that an epoch changes, from the first weights to those of the best epoch so far.

    What is judged after an epoch, and kept, are running averages of the weights: they forget the noise of the last
    updates, as an ensemble would, and cost one more copy.
    Source: Polyak & Juditsky (1992); exponential form as in Tarvainen & Valpola (2017).

    The chances of an epoch (the order of users, dropout) are drawn from the seed and the epoch's number, and the
    learning rate is a function of how much is done. So the tensors and numbers here are all that a training needs to
    go on in another process as if nothing had happened.
    """

    def __init__(self, network: Network, *, epochs: int, seed: int) -> None:
        """Begin with the network's weights; it is fitted in place."""
        self.network, self.epochs, self.seed = network, epochs, seed
        device = next(network.parameters()).device
        self.weights = HeadWeights().to(device)
        self.optimiser = torch.optim.Adam(
            [*network.parameters(), *self.weights.parameters()], lr=LEARNING_RATE
        )
        self.averaged = copy.deepcopy(network)
        self.epoch, self.updates, self.since_best, self.best = 0, 0, 0, float("inf")
        self.best_weights = self._weights()
        self.curve: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """All epochs are done, or the tuning users' loss has not fallen for ``PATIENCE`` of them."""
        return self.epoch >= self.epochs or self.since_best >= PATIENCE

    def run_epoch(self, fit: Sequences, tune: Sequences, progress: Progress | None) -> None:
        """One pass over the events that are fitted on, and one over the tuning users'.

        Raises:
            TrainingError: the loss is not finite.
        """
        began_s = time.perf_counter()
        self.epoch += 1
        loss = self._pass(fit, began_s, progress)
        seconds = time.perf_counter() - began_s
        nats = tuning_nats(self.averaged, tune)
        tuning = stopping_loss(nats)
        if not isfinite(loss) or not isfinite(tuning):
            raise TrainingError(
                f"The loss is not finite in epoch {self.epoch}. Look for absurd prices or times in the log, or "
                f"choose another --seed."
            )
        self.curve.append(
            {
                "epoch": self.epoch,
                "loss": round(loss, 5),
                "tuning_loss": round(tuning, 5),
                "tuning_nats": {name: round(value, 5) for name, value in nats.items()},
                "head_weights": self.weights.as_dict(),
            }
        )
        if tuning < self.best - LEAST_GAIN:
            self.best, self.best_weights, self.since_best = tuning, self._weights(), 0
        else:
            self.since_best += 1
        if progress is not None:
            events = int(fit.length.sum())
            progress(Report(self.epoch, self.epochs, events, events, loss, tuning, events / seconds))

    def told_of_linear(self, fit: Sequences, progress: Progress | None) -> Callable[[float], None]:
        """For ``models.shortcut.fit_linear``, whose passes follow the last epoch."""
        events, last_s = int(fit.length.sum()), time.perf_counter()

        def told(loss: float) -> None:
            nonlocal last_s
            now_s = time.perf_counter()
            if progress is not None:
                progress(
                    Report(self.epoch, self.epochs, events, events, loss, None, events / (now_s - last_s))
                )
            last_s = now_s

        return told

    def _pass(self, fit: Sequences, began_s: float, progress: Progress | None) -> float:
        torch.manual_seed(self.seed * 1_000_003 + self.epoch)
        chunks = chunks_of(fit, np.random.default_rng([self.seed, self.epoch]))
        parameters = [*self.network.parameters(), *self.weights.parameters()]
        self.network.train()
        total, done, events = 0.0, 0, int(fit.length.sum())
        for turn, reading in enumerate(readings(self.network, fit, chunks)):
            terms = head_terms(self.network, fit, reading)
            loss = self.weights(terms, len(reading.event_N))
            loss = loss + 0.5 * SHORTCUT_PENALTY * self.network.direct.square().sum()
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate((self.epoch - 1 + turn / len(chunks)) / self.epochs)
            self.optimiser.zero_grad()
            loss.backward()
            self.network.heads.keep_past_the_trunk()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            self.optimiser.step()
            self._average()
            total += sum(WEIGHTS[name] * float(nats.detach().sum()) for name, nats in terms.items())
            done += len(reading.event_N)
            if progress is not None:
                speed = done / (time.perf_counter() - began_s)
                progress(Report(self.epoch, self.epochs, done, events, total / done, None, speed))
        return total / done

    @torch.no_grad()
    def _average(self) -> None:
        self.updates += 1
        # The first weights are forgotten sooner than later ones.
        new = max(1 / AVERAGED_UPDATES, 10 / (10 + self.updates))
        for kept, now in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            kept.lerp_(now, new)

    def _weights(self) -> dict[str, Tensor]:
        return {name: values.clone() for name, values in self.averaged.state_dict().items()}

    def save(self, checkpoint: Checkpoint) -> None:
        """Write where the training stands."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        tensors |= {f"heads.{name}": tensor for name, tensor in self.weights.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in moments.items()}
        numbers = {
            "epoch": self.epoch,
            "updates": self.updates,
            "since_best": self.since_best,
            "best": self.best,
            "curve": self.curve,
        }
        checkpoint.save(tensors, numbers)

    def resume(self, checkpoint: Checkpoint) -> bool:
        """Go on where the checkpoint stands; false, and nothing changes, if there is none.

        Raises:
            TrainingError: it is damaged, or of another training.
        """
        saved = checkpoint.load()
        if saved is None:
            return False
        tensors, numbers = saved
        parts: dict[str, dict[str, Tensor]] = {
            name: {} for name in ("network", "averaged", "best", "heads", "optimiser")
        }
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["network"])
        self.averaged.load_state_dict(parts["averaged"])
        self.weights.load_state_dict(parts["heads"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimiser"].items():
            number, _, rest = name.partition(".")
            moments.setdefault(int(number), {})[rest] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        device = next(self.network.parameters()).device
        self.best_weights = {name: tensor.to(device) for name, tensor in parts["best"].items()}
        self.epoch, self.updates = numbers["epoch"], numbers["updates"]
        self.since_best = numbers["since_best"]
        self.best, self.curve = numbers["best"], numbers["curve"]
        return True


def learning_rate(done: float) -> float:
    """Up by a cosine over the first tenth of training, down by another one to nearly nothing at its end.

    Args:
        done: share of training, 0 to 1.
    """
    if done < WARM_UP:
        return LEARNING_RATE * (0.04 + 0.96 * 0.5 * (1 - cos(pi * done / WARM_UP)))
    return LEARNING_RATE * 0.5 * (1 + cos(pi * (done - WARM_UP) / (1 - WARM_UP)))


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
