"""Laws of labels: whose they are, which mean yes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stream.errors import InputFileError
from stream.files import read_log
from stream.labels import Said, labels_of, said_in_file, said_in_logs
from stream.training_log import training_log
from tests.command_line import foreclick

COLUMNS = "user=who,time=at,action=did,extra.took=took,label=is"


def said(*pairs: tuple[str, str]) -> list[Said]:
    return [Said(user, label, f"line {number}") for number, (user, label) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ("yes", "no"), [("bot", "human"), ("fraud", "genuine"), ("1", "0"), ("FAKE", " Honest"), ("1.0", "0.0")]
)
def test_usual_spellings_need_no_flag(yes: str, no: str) -> None:
    """Bots, fraud, fakes and ones are found; case and spaces do not matter."""
    labels = labels_of(said(("a", yes), ("b", no)))
    assert labels.of(["a", "b", "c"]).tolist() == [1, 0, -1]
    assert labels.positive == (yes,)
    assert not labels.lacking


def test_positive_names_what_is_to_be_found() -> None:
    """Every other spelling is then the other kind, also one that usually means yes."""
    labels = labels_of(
        said(("a", "suspect"), ("b", "bot"), ("c", "fine"), ("d", "Reseller")), "suspect,reseller"
    )
    assert labels.of(["a", "b", "c", "d"]).tolist() == [1, 0, 0, 1]


def test_an_unknown_spelling_is_one_sentence() -> None:
    """It quotes the label, says where it stands and which flag helps."""
    with pytest.raises(InputFileError, match=r"'vip' at line 2 .*--positive"):
        labels_of(said(("a", "bot"), ("b", "vip")))


def test_contradicting_labels_name_the_user() -> None:
    """Both lines are named; the same label twice, or in two spellings of one kind, is none."""
    assert labels_of(said(("a", "bot"), ("a", "fraud"))).of_user == {"a": 1}
    with pytest.raises(
        InputFileError, match="User 'a' has contradicting labels: 'bot' at line 1 and 'human' at line 3"
    ):
        labels_of(said(("a", "bot"), ("b", "bot"), ("a", "human")))


@pytest.mark.parametrize("kind", ["human", "bot"])
def test_one_kind_alone_is_said_in_a_sentence(kind: str) -> None:
    """It tells which kind lacks and what was found; no label at all is another sentence."""
    assert ("positive" if kind == "human" else "negative") in labels_of(said(("a", kind))).lacking
    assert "No user has a label" in labels_of([]).lacking


def test_a_file_of_labels_is_read_in_both_shapes(tmp_path: Path) -> None:
    """As the simulator writes them, and as the topic of labels holds them; a line that is none is refused."""
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"user_id": "u1", "label": "fake", "kind": "burst"}\n\n{"subject": "user", "id": "u2", "label": "genuine"}\n'
    )
    assert labels_of(said_in_file(path)).of_user == {"u1": 1, "u2": 0}
    path.write_text('{"label": "fake"}\n')
    with pytest.raises(InputFileError, match=r"labels.jsonl line 1 is no label"):
        said_in_file(path)


def write_log(path: Path, label: dict[int, str]) -> Path:
    rng = np.random.default_rng(1)
    lines = ["who,at,did,took,is"]
    for user in range(60):
        for turn in range(6):
            took = rng.integers(1, 5) if user % 2 else rng.integers(3, 60)
            lines.append(
                f"u{user},{1_700_000_000 + 500 * turn + user},{'tap' if turn % 2 else 'go'},{took},{label[user % 2]}"
            )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_label_is_never_part_of_an_event(tmp_path: Path) -> None:
    """Records, columns and extras of a labelled log are those of the same log without the column."""
    path = write_log(tmp_path / "log.csv", {0: "human", 1: "bot"})
    labelled = read_log(path, columns=COLUMNS)
    plain = read_log(path, columns=COLUMNS.removesuffix(",label=is"))
    assert [record.value for record in labelled.records] == [record.value for record in plain.records]
    folded = training_log([labelled], extras=("took",), labels=labels_of(said_in_logs([labelled])))
    assert folded.columns.keys() == training_log([plain], extras=("took",)).columns.keys()
    assert folded.labels.tolist() == [user % 2 for user in range(60)]


def test_labels_train_a_head_that_is_served(tmp_path: Path) -> None:
    """Training takes the column and reads the extras that --columns names; score writes the object at every event."""
    log = write_log(tmp_path / "log.csv", {0: "human", 1: "bot"})
    told = ("--columns", COLUMNS, "--time-format", "s")
    fast = (
        "--epochs",
        "1",
        "--no-blend",
        "--architecture",
        "linear",
        "--bounds",
        "60,80",
        "--least-labels",
        "5",
    )
    ran = foreclick("train", log, *told, *fast, "--out", tmp_path, "--json")
    assert ran.code == 0, ran.error
    assert "positive (bot)" in ran.json["fake_order"]
    model = tmp_path / "shop" / "1"
    ran = foreclick("score", log, *told, "--model", model, "--out", "-")
    objects = [json.loads(line)["fake_order"] for line in ran.out.splitlines() if line.startswith("{")]
    assert len(objects) == 360
    assert all(0 <= one["score"] <= 1 and 0 <= one["probability"] <= 1 for one in objects)
    ran = foreclick("evaluate", model, log, *told, "--json")
    assert ran.code == 0, ran.error
    assert {each["metric"] for each in ran.json["metrics"] if each["head"] == "fake_order"} >= {
        "roc_auc",
        "ece",
    }


def test_a_log_without_positives_trains_without_the_head(tmp_path: Path) -> None:
    """It says so in one sentence, and the predictions have no object."""
    log = write_log(tmp_path / "log.csv", {0: "human", 1: "human"})
    fast = ("--epochs", "1", "--no-blend", "--architecture", "linear", "--bounds", "60,80")
    ran = foreclick(
        "train", log, "--columns", COLUMNS, "--time-format", "s", *fast, "--out", tmp_path, "--json"
    )
    assert ran.code == 0, ran.error
    assert ran.json["fake_order"].startswith("No user has a positive label (found: human")
