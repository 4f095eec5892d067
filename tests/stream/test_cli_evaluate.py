"""``foreclick evaluate``: figures that anybody can recompute, or one line that says why there are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from zlib import crc32

import msgspec
import numpy as np
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


def test_a_report_is_a_page_and_the_same_figures_for_programs(model: Path, log: Path, tmp_path: Path) -> None:
    """metrics.json is what --json prints; what rebuilt states cost is among the figures and in a sentence."""
    folder = tmp_path / "a" / "report"
    ran = foreclick("evaluate", model, log, "--rebuilt", "--report", folder, "--json")
    assert ran.code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "report.html"]
    assert json.loads((folder / "metrics.json").read_text()) == ran.json
    assert (folder / "report.html").read_text().count("<svg") == 7  # an untrained model has no training curve
    names = {entry["name"] for entry in ran.json["differences"]}
    assert names == {"lstm_rebuilt - lstm_carried"}
    assert any("state rebuilt from the 32 events of the window costs" in note for note in ran.json["notes"])


def test_a_report_that_cannot_be_written_is_one_line(model: Path, log: Path, tmp_path: Path) -> None:
    """The folder is named, and the flag."""
    (tmp_path / "file").write_text("")
    ran = foreclick("evaluate", model, log, "--report", tmp_path / "file")
    assert ran.code == 1
    assert f"cannot be written to {tmp_path / 'file'}" in ran.err
    assert "--report" in ran.err


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files of sequences of three types: after 0 comes 1 soon, after 1 comes 2, after 2 anything much later."""
    folder = tmp_path_factory.mktemp("sequences")
    paths = (folder / "train.jsonl", folder / "dev.jsonl")
    for path, seed in zip(paths, (1, 2), strict=True):
        rng = np.random.default_rng(seed)
        lines = []
        for number in range(40):
            kind, steps, units = 0, [[0, 150_000.0, 0]], 150_000.0
            for _ in range(20):
                gap = float(rng.uniform(0.001, 0.003)) if kind < 2 else 1.5
                kind = kind + 1 if kind < 2 else int(rng.integers(3))
                units += gap
                steps.append([kind, units, gap])
            lines.append(json.dumps({"seq": number, "events": steps}))
        path.write_text("\n".join(lines))
    return paths


def test_sequences_are_measured_in_their_own_unit(sequences: tuple[Path, Path], tmp_path: Path) -> None:
    """A model that is trained on one file is measured on all of another, and so are baselines of that first file."""
    train, dev = sequences
    flags = ("--format", "tpp")
    made = foreclick("train", train, *flags, "--out", tmp_path, "--epochs", 1, "--json")
    assert made.code == 0, made.err
    ran = foreclick(
        "evaluate", made.json["model"], dev, *flags, "--split", "all", "--baselines-on", train, "--json"
    )
    assert ran.code == 0, ran.err
    result = ran.json
    assert result["gap_unit_s"] == 10_000
    assert (result["users"], result["events"]) == (40, 840)
    assert value(result, "next_action", "accuracy", "markov_1") > 0.6
    assert 0 < value(result, "gap", "mae") < 20
    assert [note.split(" ")[0] for note in result["notes"]] == ["purchase", "next_category"]


def test_baselines_on_another_log_are_for_logs_of_other_users(model: Path, log: Path) -> None:
    """With --split test they are fitted on the log itself."""
    ran = foreclick("evaluate", model, log, "--baselines-on", log)
    assert ran.code == 1
    assert "--baselines-on is for --split all" in ran.error


def test_a_model_split_by_time_is_measured_on_what_came_later(log: Path, tmp_path: Path) -> None:
    """Every user's events from that moment on count, with their history; --bounds splits by user all the same."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    from_ms = events[2500]["event_time_ms"]
    folder = untrained(tmp_path, hidden=16, training={"bounds": BOUNDS, "split_time_ms": from_ms})
    result = foreclick("evaluate", folder, log, "--baselines", "--json").json
    firsts = {event["user_id"]: event["event_id"] for event in reversed(events)}
    counted = [e for e in events if e["event_time_ms"] >= from_ms and firsts[e["user_id"]] != e["event_id"]]
    assert {entry["n"] for entry in result["metrics"] if entry["head"] == "next_action"} == {len(counted)}
    assert result["split_time_ms"] == from_ms
    by_user = foreclick("evaluate", folder, log, "--bounds", "50,60", "--json").json
    assert by_user["split_time_ms"] is None
    early = untrained(tmp_path, name="early", hidden=16, training={"bounds": BOUNDS, "split_time_ms": 2**52})
    assert "no event from the model's split time on" in foreclick("evaluate", early, log).error
