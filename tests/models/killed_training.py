"""A training in a process of its own that kills itself: ``python -m tests.models.killed_training ROOT MOMENT``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from models.fitting import Report
from models.training import train
from models.training_log import TrainingLog
from models.vocabulary import ActionVocabulary, code_of
from tests.models import synthetic

EPOCHS = 4
MOMENTS = ("within an epoch", "before a checkpoint is renamed", "before the model is renamed", "after it is")


def small_log() -> TrainingLog:
    """Some 300 events of 40 users."""
    columns = synthetic.shop(40, 300, seed=8)
    names = {code_of(name): name for name in synthetic.CATEGORIES + synthetic.RARE}
    users = [f"u{row}" for row in range(40)]
    return TrainingLog(columns, users, names, ActionVocabulary(synthetic.ACTIONS))


def train_small(root: Path, **more) -> Path:
    """The training that is killed, resumed, and left undisturbed."""
    return train(small_log(), root, hidden=8, epochs=EPOCHS, seed=2, **more)


def die() -> None:
    """As by ``kill -9``: no handler, no ``finally``, no buffer is run."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(root: Path, moment: str) -> None:
    """Train, and die at that moment."""
    if moment == MOMENTS[0]:

        def die_in_the_third_epoch(report: Report) -> None:
            if report.epoch == 3 and report.tuning_loss is None:
                die()

        train_small(root, progress=die_in_the_third_epoch)
    elif moment == MOMENTS[1]:
        replace, calls = Path.replace, []

        def die_at_the_second(self: Path, target: Path) -> Path:
            calls.append(target)
            if len(calls) == 2:
                die()
            return replace(self, target)

        Path.replace = die_at_the_second  # type: ignore[method-assign]
    elif moment == MOMENTS[2]:
        os.rename = lambda *_: die()  # type: ignore[assignment]
    elif moment == MOMENTS[3]:
        from models.checkpoint import Checkpoint

        Checkpoint.remove = lambda _: die()  # type: ignore[method-assign]
    train_small(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
