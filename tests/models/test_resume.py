"""Laws of interrupted training: nothing half is ever seen, and going on makes the same model."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import ArtefactError, TrainingError
from models.registry import load_artefact
from tests.models.killed_training import MOMENTS, small_log, train_small

CHECKPOINT = Path("shop-lstm") / ".1-training" / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> int:
    """Fingerprint of the weights of a training that nobody killed."""
    return load_artefact(train_small(tmp_path_factory.mktemp("undisturbed"))).fingerprint


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict[str, Path]:
    """For each moment, the model store of a process that was killed then."""
    roots = {moment: tmp_path_factory.mktemp("killed") for moment in MOMENTS}
    started = {
        moment: subprocess.Popen([sys.executable, "-m", "tests.models.killed_training", str(root), moment])
        for moment, root in roots.items()
    }
    for moment, process in started.items():
        assert process.wait(timeout=240) == -signal.SIGKILL, moment
    return roots


def visible(root: Path) -> list[str]:
    return [path.name for path in root.glob("*/*") if not path.name.startswith(".")]


@pytest.mark.parametrize("moment", MOMENTS[:3])
def test_a_killed_training_resumes_to_the_same_weights(killed, undisturbed, moment):
    """No version is to be seen after the kill; resumed, it is the one of an undisturbed run, to the bit."""
    root = killed[moment]
    assert visible(root) == []
    assert (root / CHECKPOINT).exists()
    epochs = []

    def told(report):
        if report.tuning_loss is not None:
            epochs.append(report.epoch)

    folder = train_small(root, resume=True, progress=told)
    assert load_artefact(folder).fingerprint == undisturbed
    assert min(epochs, default=5) == {MOMENTS[0]: 3, MOMENTS[1]: 2, MOMENTS[2]: 5}[moment]
    assert visible(root) == ["1"]
    assert not (root / CHECKPOINT).parent.exists()


def test_a_version_that_was_written_before_the_kill_is_whole(killed, undisturbed):
    """It loads, and training it again is refused at once and clears the checkpoint away."""
    root = killed[MOMENTS[3]]
    assert load_artefact(root / "shop-lstm" / "1").fingerprint == undisturbed
    with pytest.raises(ArtefactError, match="never overwritten"):
        train_small(root, resume=True)
    assert not (root / CHECKPOINT).parent.exists()


def test_the_curve_of_a_resumed_training_has_every_epoch_once(tmp_path):
    """The manifest tells of all epochs, those before the interruption too."""

    class Interrupted(Exception):
        pass

    def interrupt(report):
        if report.epoch == 2 and report.tuning_loss is not None:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_small(tmp_path, progress=interrupt)
    curve = load_artefact(train_small(tmp_path, resume=True)).manifest["training"]["curve"]
    assert [entry["epoch"] for entry in curve] == [1, 2, 3, 4]


def interrupted(root: Path) -> Path:
    """A store with the checkpoint of one epoch."""

    def stop(report):
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small(root, progress=stop)
    return root / CHECKPOINT


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    """The message names the setting and both values; without --resume the training starts anew."""
    from models.training import train

    interrupted(tmp_path)
    with pytest.raises(TrainingError, match=r"its seed is 2, this one's is 3\. .* without --resume"):
        train(small_log(), tmp_path, hidden=8, epochs=4, seed=3, resume=True)
    train(small_log(), tmp_path, hidden=8, epochs=1, seed=3)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    """Its path is named, and what to do."""
    path = interrupted(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"is damaged .* without --resume"):
        train_small(tmp_path, resume=True)


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path, undisturbed):
    """A kill within the first epoch leaves none, and the same command goes on."""
    assert load_artefact(train_small(tmp_path, resume=True)).fingerprint == undisturbed
