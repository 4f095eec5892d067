"""The command that measures alerts, from flags to figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream.errors import InputFileError
from stream.evaluating_alerts import read_labels
from tests.command_line import foreclick


def test_every_detector_is_measured_on_every_attack(tmp_path: Path) -> None:
    """A log with its labels gives a figure for the score and four baselines, and the same figures again."""
    log, labels = tmp_path / "mixed.jsonl", tmp_path / "labels.jsonl"
    made = foreclick(
        *(
            "simulate",
            "--users",
            "150",
            "--events",
            "2500",
            "--attacks",
            "drip=5,burst=5",
            "--labels",
            labels,
        ),
        *("--negatives", "crawlers=1", "--out", log),
    )
    assert made.code == 0, made.err
    ran = foreclick("evaluate-alerts", log, "--labels", labels, "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json["attacks"]) == {"drip", "burst"}
    for figures in ran.json["attacks"].values():
        assert set(figures["detectors"]) == {"score", "rate", "markov", "isolation", "co_purchase"}
        for each in figures["detectors"].values():
            assert 0 <= each["recall"] <= 1
            assert 0 < each["average_precision"] <= 1
    assert ran.json["attacks"]["drip"]["detectors"]["score"]["auc"] > 0.9
    assert ran.json["false_positives"]["crawlers"] == 0


def test_labels_that_are_none_are_said_with_their_line(tmp_path: Path) -> None:
    """A line without a label names the file and the line."""
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"user_id": "u", "label": "fake"}) + "\n{}\n")
    with pytest.raises(InputFileError, match="line 2 is no label"):
        read_labels(str(path))


def test_log_needs_its_labels() -> None:
    """A log without labels cannot be measured, and the message says how."""
    ran = foreclick("evaluate-alerts", "log.jsonl")
    assert ran.code == 1
    assert "--labels" in ran.error
