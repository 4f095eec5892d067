"""The model that comes with the package: simulated, folded, trained and compared with simple methods.

Everything is fixed by seeds. Users are split by crc32 of their id: the printed numbers are of users that neither the
network nor the chains were fitted or tuned on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from models.simulator.simulate import simulate
from models.training_log import TrainingLog
from stream.files import FileRecord, LogFile
from stream.training_log import training_log

if TYPE_CHECKING:
    from models.fitting import Progress

BOUNDS = (60, 70)


def simulated_log(users: int, events: int, seed: int) -> TrainingLog:
    """Simulated events through the same decoding and fold as any file's."""
    encode = msgspec.json.Encoder().encode
    records = [
        FileRecord(number, event.user_id.encode(), encode(event), event.event_time_ms)
        for number, event in enumerate(simulate(users, events, seed).events, 1)
    ]
    return training_log([LogFile(f"simulated, {users} users, seed {seed}", "canonical", records)])


def make(
    root: Path,
    *,
    name: str,
    version: str,
    users: int,
    events: int,
    seed: int,
    epochs: int,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """Train the model and compare it on unseen users.

    Returns:
        Its folder, and next-action log-loss (a user's first event not scored) of unigram, Markov 2 and the network
        with 95 % intervals by user, and the paired difference network - Markov 2.
    """
    from models.training import train

    log = simulated_log(users, events, seed)
    folder = train(
        log,
        root,
        name=name,
        version=version,
        bounds=BOUNDS,
        epochs=epochs,
        seed=seed,
        blend=True,
        progress=progress,
    )
    return folder, compare(folder, log)


def compare(folder: Path, log: TrainingLog) -> dict[str, Any]:
    """Log-loss of the network and the simple methods on the test users of a log."""
    from models.baselines import unigram
    from models.baselines.markov import Markov
    from models.evaluation import mean_interval, run, scored
    from models.registry import load_artefact
    from models.runtime import StepEngine

    fit, tune, test = log.of_users(0, BOUNDS[0]), log.of_users(*BOUNDS), log.of_users(BOUNDS[1], 100)
    later = scored(test)
    user = test["row"][later]
    actions = len(log.actions)
    losses = {
        "unigram": unigram.losses(test, unigram.probabilities(fit, actions))[later],
        "markov2": Markov.fit(fit, tune, actions, order=2).losses(test)[later],
        "network": run(StepEngine(load_artefact(folder), device="cpu"), test).terms[later, 0],
    }
    result: dict[str, Any] = {
        name: mean_interval(loss, user).as_dict("next_action", "log_loss") for name, loss in losses.items()
    }
    difference = mean_interval(losses["network"] - losses["markov2"], user)
    result["network_minus_markov2"] = difference.as_dict("next_action", "log_loss difference, paired by user")
    return result
