"""``foreclick train --extra``: numbers of a log's own that a model reads, in training and in the stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.registry import load_artefact
from tests.command_line import foreclick

COLUMNS = ("--columns", "user=1,time=2,action=3,extra.dwell=4", "--no-header", "--time-format", "s")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """150 users; who dwelt long taps next, who did not swipes. Some dwelling was not measured."""
    rng = np.random.default_rng(3)
    lines = []
    for user in range(150):
        long = False
        for turn in range(20):
            action = "tap" if long else "swipe"
            long = bool(rng.random() < 0.5)
            dwell = "" if rng.random() < 0.1 else f"{900 if long else 3}"
            lines.append(f"u{user},{1_700_000_000 + 60 * turn + user},{action},{dwell}")
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def log_loss(log: Path, out: Path, *options: str) -> float:
    ran = foreclick(
        "train", log, *COLUMNS, "--out", out, "--epochs", "24", "--bounds", "60,80", *options, "--json"
    )
    assert ran.code == 0, ran.error
    return ran.json["metrics"]["test"]["value"]


def test_a_declared_extra_tells_the_model_what_comes_next(log: Path, tmp_path: Path) -> None:
    """Without it the next action is a coin's throw; the manifest names it, and the file can be scored."""
    blind = log_loss(log, tmp_path / "blind")
    seeing = log_loss(log, tmp_path / "seeing", "--extra", "dwell")
    assert seeing < 0.8 * blind
    folder = tmp_path / "seeing" / "shop" / "1"
    artefact = load_artefact(folder)
    assert artefact.features.extras == ("dwell",)
    assert [each["name"] for each in artefact.manifest["features"]][-2:] == [
        "extra.dwell",
        "extra_missing.dwell",
    ]
    ran = foreclick("score", log, *COLUMNS, "--model", folder, "--out", tmp_path / "p.jsonl", "--json")
    assert ran.json["predictions"] == 3000


def test_an_extra_that_no_event_has_is_refused(log: Path, tmp_path: Path) -> None:
    """The sentence names it and how to give its column."""
    ran = foreclick("train", log, *COLUMNS, "--out", tmp_path, "--extra", "dwell,value")
    assert ran.code != 0
    assert "extra.value=COLUMN" in ran.error


@pytest.mark.parametrize("names", ["", "dwell,dwell", "dwell,"])
def test_extras_are_different_names(log: Path, tmp_path: Path, names: str) -> None:
    """Empty and repeated ones are refused before anything is read."""
    ran = foreclick("train", log, *COLUMNS, "--out", tmp_path, "--extra", names)
    assert ran.code != 0
    assert "--extra" in ran.error
