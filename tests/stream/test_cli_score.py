"""``foreclick score``: a file through the pipeline's core, whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path

import pytest

from models.network import TRUNKS
from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.files import read_records
from stream.offline import records_of, score_batches
from stream.settings import load_settings
from tests.command_line import foreclick

START_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models"), categories=("c0", "c1", "c2"), hidden=16)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """300 events of 7 users, an hour and a half in all, with a category that the model does not know."""
    lines = [
        json.dumps(
            {
                "user_id": f"u{number % 7}",
                "event_time_ms": START_MS + number * 18_000,
                "action": ("view", "cart", "zap")[number % 3],
                "event_id": f"e{number}",
                "category_id": f"c{number % 5}",
                "price": number / 7,
            }
        )
        for number in range(300)
    ]
    path = tmp_path / "clicks.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_one_prediction_is_written_for_each_event(log: Path, model: Path, tmp_path: Path) -> None:
    """The file is the topic that predictions name, and the last line of output sums up."""
    out = tmp_path / "predictions.jsonl"
    ran = foreclick("score", log, "--model", model, "--out", out, "--json")
    assert ran.code == 0
    predictions = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each["event_id"] for each in predictions] == [f"e{number}" for number in range(300)]
    assert predictions[5]["source"] == {"topic": "clicks.jsonl", "partition": 0, "offset": 5}
    assert ran.json["events_in"] == ran.json["predictions"] == 300
    assert ran.json["model"] == "untrained/1"


def test_standard_streams_give_what_files_give(log: Path, model: Path, tmp_path: Path) -> None:
    """``-`` reads standard input and writes standard output; only the topic's name differs."""
    out = tmp_path / "predictions.jsonl"
    foreclick("score", log, "--model", model, "--out", out)
    ran = foreclick("score", "-", "--model", model, stdin=log.read_bytes())
    assert ran.code == 0
    assert ran.out.replace('"topic":"stdin"', '"topic":"clicks.jsonl"') == out.read_text()


@pytest.mark.parametrize("architecture", TRUNKS)
def test_no_byte_depends_on_the_size_of_a_micro_batch(log: Path, tmp_path: Path, architecture: str) -> None:
    """Predictions of every network are the same for micro-batches of 7 and of 4,096 records."""
    folder = untrained(tmp_path, architecture=architecture, categories=("c0", "c1", "c2"), hidden=16)
    artefact = load_artefact(folder)
    engine, settings = StepEngine(artefact, "cpu"), load_settings({})
    records = list(records_of(read_records(log)))

    def predictions(micro_batch: int) -> list[object]:
        batches = score_batches(records, settings, artefact, engine, "clicks", micro_batch=micro_batch)
        return [message for rendered in batches for message in rendered.messages["predictions"]]

    assert predictions(7) == predictions(4096)


def test_rejected_records_are_counted_and_kept_with_their_reasons(
    log: Path, model: Path, tmp_path: Path
) -> None:
    """A record without an action and a line that is no JSON are dead letters; a repeated event id is dropped."""
    last = log.read_text().splitlines()[-1]
    rejected = '{"user_id": "u1", "event_time_ms": 1700000000000}'
    log.write_text(log.read_text() + f"{last}\n{rejected}\nnot json\n")
    letters = tmp_path / "rejected.jsonl"
    ran = foreclick(
        "score",
        log,
        "--model",
        model,
        "--out",
        tmp_path / "p",
        "--order",
        "file",
        "--dead-letters",
        letters,
        "--json",
    )
    assert ran.json["dead_letters"] == {"missing_field": 1, "undecodable": 1}
    assert (ran.json["predictions"], ran.json["duplicates_dropped"]) == (300, 1)
    found = [json.loads(line) for line in letters.read_text().splitlines()]
    assert [each["reason"] for each in found] == ["missing_field", "undecodable"]
    assert found[0]["value"] == rejected
    assert found[1]["source"] == {"topic": "clicks.jsonl", "partition": 0, "offset": 302}


def test_a_truncated_archive_leaves_nothing_behind(log: Path, model: Path, tmp_path: Path) -> None:
    """The error names the file, and no output file appears, not even an empty one."""
    archive = tmp_path / "clicks.jsonl.gz"
    archive.write_bytes(gzip.compress(log.read_bytes())[:-20])
    out = tmp_path / "out"
    out.mkdir()
    ran = foreclick("score", archive, "--model", model, "--out", out / "predictions.jsonl")
    assert ran.code == 1
    assert str(archive) in ran.error
    assert "truncated" in ran.error
    assert not list(out.iterdir())


def test_a_missing_column_is_named(model: Path, tmp_path: Path) -> None:
    """The message has the column and the flag that maps others."""
    path = tmp_path / "log.csv"
    path.write_text("visitor,when,what\n1,2,3\n")
    ran = foreclick("score", path, "--model", model, "--columns", "user=visitor,time=when,action=kind")
    assert ran.code == 1
    assert "lacks the column kind" in ran.error
    assert "--columns" in ran.error


def test_an_existing_output_stays_when_the_model_is_bad(log: Path, model: Path, tmp_path: Path) -> None:
    """Changed weights are refused by their hash, and the predictions of yesterday are still there."""
    folder = tmp_path / "models" / "untrained" / "1"
    folder.mkdir(parents=True)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "manifest.json").write_bytes((model / "manifest.json").read_bytes())
    out = tmp_path / "predictions.jsonl"
    out.write_text("yesterday\n")
    ran = foreclick("score", log, "--model", folder, "--out", out)
    assert ran.code == 1
    assert "SHA-256" in ran.error
    assert out.read_text() == "yesterday\n"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 1'), "truncated or damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "it is truncated"),
    ],
)
def test_a_broken_model_folder_is_one_line(
    log: Path, model: Path, tmp_path: Path, damage, words: str
) -> None:  # type: ignore[no-untyped-def]
    """Each kind of damage has its own words, and the folder's name."""
    folder = tmp_path / "1"
    folder.mkdir()
    for name in ("manifest.json", "model.safetensors"):
        (folder / name).write_bytes((model / name).read_bytes())
    damage(folder)
    ran = foreclick("score", log, "--model", folder)
    assert ran.code == 1
    assert words in ran.error
    assert str(folder) in ran.error


def test_a_missing_model_folder_names_the_command_that_makes_one(log: Path) -> None:
    """``foreclick train`` is the way to a model of one's own."""
    ran = foreclick("score", log, "--model", "/nowhere/model/1")
    assert ran.code == 1
    assert "/nowhere/model/1 does not exist" in ran.error
    assert "foreclick train" in ran.error


def test_a_misspelt_setting_is_an_error(log: Path) -> None:
    """A setting that is silently ignored would be worse; the nearest name is offered."""
    ran = foreclick("score", log, SESION_GAP_S=60)
    assert ran.code == 1
    assert "Unknown setting FORECLICK_SESION_GAP_S" in ran.error
    assert "FORECLICK_SESSION_GAP_S" in ran.error


def test_an_output_that_cannot_be_written_is_named(log: Path, model: Path, tmp_path: Path) -> None:
    """The folder of the output must exist."""
    ran = foreclick("score", log, "--model", model, "--out", tmp_path / "nowhere" / "p.jsonl")
    assert ran.code == 1
    assert "nowhere/p.jsonl cannot be written" in ran.error


def test_a_pipe_is_written_into_and_stays_a_pipe(log: Path, model: Path, tmp_path: Path) -> None:
    """Renaming a file over it would replace it; over a device that would harm the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert foreclick("score", log, "--model", model, "--out", pipe).code == 0
    reader.join(10)
    assert pipe.is_fifo()
    assert received[0].count(b"\n") == 300


def test_a_link_stays_a_link(log: Path, model: Path, tmp_path: Path) -> None:
    """What it leads to is replaced."""
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    assert foreclick("score", log, "--model", model, "--out", link).code == 0
    assert link.is_symlink()
    assert real.read_text().count("\n") == 300


@pytest.mark.parametrize("command", ["worker", "replay", "score", "rekey", "doctor"])
def test_help_of_a_command_shows_an_example(command: str) -> None:
    """A newcomer copies the example."""
    assert f"Example: foreclick {command}" in foreclick(command, "--help").out


@pytest.mark.parametrize(
    "command", ["topics create", "topics check", "dlq list", "dlq show", "dlq replay"]
    + [f"state {name}" for name in ("show", "stats", "verify", "reset")],
)  # fmt: skip
def test_help_of_a_subcommand_shows_an_example(command: str) -> None:
    """The same for commands in groups."""
    assert f"Example: foreclick {command}" in foreclick(*command.split(), "--help").out
