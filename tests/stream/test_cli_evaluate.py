"""``foreclick evaluate``: figures that anybody can recompute, or one line that says why there are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from zlib import crc32

import msgspec
import pytest

from models.registry import untrained
from models.simulator.simulate import simulate
from tests.command_line import foreclick

BOUNDS = [50, 60]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models"), hidden=16, training={"bounds": BOUNDS})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 simulated events of 60 users."""
    path = tmp_path_factory.mktemp("logs") / "clicks.jsonl"
    encode = msgspec.json.encode
    path.write_bytes(b"".join(encode(event) + b"\n" for event in simulate(60, 3000, 4).events))
    return path


def events_of_test_users(log: Path) -> list[dict]:
    """The events of the users at or above the second bound, in their order."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event for event in events if crc32(event["user_id"].encode()) % 100 >= BOUNDS[1]]


def value(result: dict, head: str, metric: str, name: str = "lstm") -> float:
    [found] = [
        entry["value"]
        for entry in result["metrics"]
        if (entry["head"], entry["metric"], entry["name"]) == (head, metric, name)
    ]
    return float(found)


def test_anybody_can_recompute_the_figures_from_score(model: Path, log: Path, tmp_path: Path) -> None:
    """The distributions that `score` writes give the log-loss and the accuracy that `evaluate` prints."""
    out = tmp_path / "predictions.jsonl"
    assert foreclick("score", log, "--model", model, "--out", out).code == 0
    predicted = {each["event_id"]: each for each in map(json.loads, out.read_text().splitlines())}
    before: dict[str, dict] = {}
    losses, hits, errors, reciprocal = [], [], [], []
    for event in events_of_test_users(log):
        if earlier := before.get(event["user_id"]):
            said = earlier["next_action"]
            assert sum(said.values()) == pytest.approx(1, abs=1e-5)
            losses.append(-math.log(said[event["action"]]))
            hits.append(max(said, key=said.__getitem__) == event["action"])
            gap_s = (event["event_time_ms"] - earlier["event_time_ms"]) / 1000
            errors.append(abs(earlier["median_gap_s"] - gap_s))
            names = [each["category"] for each in earlier["next_category"]]
            rank = names.index(event["category_id"]) + 1 if event["category_id"] in names else math.inf
            reciprocal.append(1 / rank)
        before[event["user_id"]] = predicted[event["event_id"]]
    result = foreclick("evaluate", model, log, "--json").json
    assert value(result, "next_action", "log_loss") == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert value(result, "next_action", "accuracy") == pytest.approx(sum(hits) / len(hits), abs=1e-6)
    assert value(result, "gap", "mae") == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert value(result, "next_category", "mrr") == pytest.approx(sum(reciprocal) / len(errors), abs=1e-3)
    assert result["metrics"][0]["n"] == len(losses)


def test_baselines_are_measured_on_the_same_events_with_paired_differences(model: Path, log: Path) -> None:
    """Every entry has its keys and an interval around its value; each difference is that of two entries."""
    result = foreclick("evaluate", model, log, "--baselines", "--json").json
    for entry in result["metrics"] + result["differences"]:
        assert {"head", "name", "metric", "value", "low", "high", "n"} <= entry.keys()
    for entry in result["metrics"]:
        if entry["low"] is not None:
            assert entry["low"] - 1e-6 <= entry["value"] <= entry["high"] + 1e-6, entry
    losses = [entry for entry in result["metrics"] if entry["metric"] == "log_loss"]
    assert len({entry["n"] for entry in losses if entry["head"] == "next_action"}) == 1
    [difference] = [
        entry["value"]
        for entry in result["differences"]
        if (entry["name"], entry["metric"]) == ("lstm - markov_3", "log_loss")
    ]
    expected = value(result, "next_action", "log_loss") - value(result, "next_action", "log_loss", "markov_3")
    assert difference == pytest.approx(expected, abs=2e-6)
    verdict = {"head": "next_action", "metric": "log_loss", "baseline": "markov_3", "verdict": "behind"}
    assert verdict in result["verdicts"]  # random weights know less than counts


def test_all_users_are_measured_with_baselines_fitted_on_the_others(model: Path, log: Path) -> None:
    """--split all is for logs of other users."""
    result = foreclick("evaluate", model, log, "--split", "all", "--baselines", "--json").json
    assert (result["users"], result["events"], result["split"]) == (60, 3000, "all")
    assert 0 < value(result, "next_action", "log_loss", "markov_1") < 2.0


def test_a_baseline_that_is_not_beaten_is_said_for_people_too(model: Path, log: Path) -> None:
    """Without --json the tables are followed by sentences."""
    ran = foreclick("evaluate", model, log, "--baselines")
    assert ran.code == 0
    assert "next_action, log_loss: lstm is BEHIND markov_3." in ran.out


def test_an_unknown_action_counts_as_other_and_is_said(model: Path, log: Path, tmp_path: Path) -> None:
    """The figures of such a log are not what they seem."""
    path = tmp_path / "odd.jsonl"
    path.write_text(log.read_text().replace('"action":"view"', '"action":"gaze"'))
    notes = foreclick("evaluate", model, path, "--json").json["notes"]
    assert any("have an action that the model does not know" in note for note in notes)


def test_a_log_without_test_users_is_one_line(model: Path, log: Path, tmp_path: Path) -> None:
    """It names the bounds and the flag."""
    path = tmp_path / "few.jsonl"
    lines = [
        line
        for line in log.read_text().splitlines()
        if crc32(json.loads(line)["user_id"].encode()) % 100 < 50
    ]
    path.write_text("\n".join(lines))
    ran = foreclick("evaluate", model, path)
    assert ran.code == 1
    assert "has no test users" in ran.error
    assert "--split all" in ran.error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--split", "tset"), "--split 'tset' is unknown"),
        (("--bounds", "60"), "--bounds '60' is not two whole numbers"),
        (("--bounds", "70,60"), "0 < fit < tune"),
        (("--format", "taobao"), "columns in its first row"),
    ],
)
def test_a_wrong_flag_is_one_line(model: Path, log: Path, arguments: tuple[str, ...], words: str) -> None:
    """The message names the flag."""
    ran = foreclick("evaluate", model, log, *arguments)
    assert ran.code == 1
    assert words in ran.error


def test_a_missing_model_is_one_line(log: Path) -> None:
    """And names the command that makes one."""
    ran = foreclick("evaluate", "/nowhere/model/1", log)
    assert ran.code == 1
    assert "foreclick train" in ran.error


def test_a_model_that_does_not_tell_its_users_needs_bounds(log: Path, tmp_path: Path) -> None:
    """Guessing which users were unseen would make figures up."""
    folder = untrained(tmp_path, hidden=16)
    ran = foreclick("evaluate", folder, log)
    assert ran.code == 1
    assert "does not say on which users it was trained" in ran.error
    assert foreclick("evaluate", folder, log, "--bounds", "50,60", "--json").code == 0


def test_a_file_without_events_is_one_line(model: Path, tmp_path: Path) -> None:
    """Whatever is in it."""
    path = tmp_path / "none.jsonl"
    path.write_text('{"user_id": "u"}\n')
    ran = foreclick("evaluate", model, path)
    assert ran.code == 1
    assert "No line of" in ran.error
