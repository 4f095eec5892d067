"""Laws of the commands ``train`` and ``models``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.errors import ArtefactError
from models.registry import untrained
from stream.cli import app
from stream.errors import ConfigurationError

runner = CliRunner()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small log with columns of its own."""
    path = tmp_path_factory.mktemp("logs") / "shop.csv"
    lines = ["who,when,what,kind"]
    for user in range(60):
        for turn in range(12):
            lines.append(
                f"u{user},{1_700_000_000 + 3600 * user + 40 * turn},{'tap' if turn % 3 else 'swipe'},k{turn % 4}"
            )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_train_makes_a_model_folder_and_says_how_good_it_is(log, tmp_path):
    """From a log by --columns to a verified folder; the last line is one JSON object."""
    arguments = ["train", str(log), "--columns", "user=who,time=when,action=what,category=kind", "--time-format", "s",
                 "--out", str(tmp_path), "--name", "taps", "--version", "3", "--epochs", "2", "--json"]  # fmt: skip
    result = runner.invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    last = json.loads(result.stdout.strip().splitlines()[-1])
    assert last["model"] == str(tmp_path / "taps" / "3")
    assert 0 < last["metrics"]["test"]["value"] < 1
    shown = runner.invoke(app, ["models", "show", last["model"], "--json"], catch_exceptions=False)
    told = json.loads(shown.stdout)
    assert told["actions"] == ["tap", "swipe"]
    assert told["training"]["files"] == ["shop.csv"]


@pytest.mark.parametrize("bounds", ["60", "a,b", "60,70,80"])
def test_bounds_that_are_no_pair_are_refused(log, tmp_path, bounds):
    """The message shows how to write them."""
    with pytest.raises(ConfigurationError, match=r"is not two whole numbers\. Write for example 60,70"):
        runner.invoke(
            app, ["train", str(log), "--out", str(tmp_path), "--bounds", bounds], catch_exceptions=False
        )
    assert not list(tmp_path.iterdir())


def test_verify_names_a_whole_model(tmp_path):
    """A good folder is named with its hash."""
    folder = untrained(tmp_path, name="whole", hidden=16)
    result = runner.invoke(app, ["models", "verify", str(folder)], catch_exceptions=False)
    assert result.stdout.startswith("whole/1 is whole: SHA-256 ")


def test_verify_refuses_a_damaged_model(tmp_path):
    """A bad one is an error of the user's kind."""
    folder = untrained(tmp_path, hidden=16)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtefactError, match="has 0 bytes"):
        runner.invoke(app, ["models", "verify", str(folder)], catch_exceptions=False)


def test_train_splits_by_time_and_says_an_epoch_a_line(log, tmp_path):
    """Events from the moment on measure; each epoch is one line on standard error, elsewhere than on a terminal."""
    arguments = ["train", str(log), "--columns", "user=who,time=when,action=what,category=kind", "--time-format", "s",
                 "--out", str(tmp_path), "--epochs", "2", "--split-time", "2023-11-16", "--json"]  # fmt: skip
    result = runner.invoke(app, arguments, catch_exceptions=False)
    last = json.loads(result.stdout.strip().splitlines()[-1])
    shown = json.loads(runner.invoke(app, ["models", "show", last["model"], "--json"]).stdout)
    assert shown["training"]["split_time_ms"] == 1_700_092_800_000
    assert shown["training"]["to_ms"] < 1_700_092_800_000
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["epoch 1", "epoch 2"]
    assert "nats an event" in result.stderr
    assert "events/s" in result.stderr


def test_a_split_time_that_is_no_moment_is_refused(log, tmp_path):
    """The message shows how to write one."""
    arguments = ["train", str(log), "--out", str(tmp_path), "--split-time", "tomorrow"]
    with pytest.raises(ConfigurationError, match=r"is no moment\. Write for example 2026-01-31"):
        runner.invoke(app, arguments, catch_exceptions=False)
