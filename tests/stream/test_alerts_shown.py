"""Alerts as people see them: a line each or one whole, from a file; hostile ids stay plain text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import ConfigurationError
from stream.stored_alerts import StoredAlert, alert_of, chain_of
from stream.wording import cut, moment, moment_of, plain
from tests.command_line import foreclick

HOSTILE = "u\x1b[2J\x1b]0;owned\x07\n[bold red]x[/]\u202e<script>alert(1)</script>" + "ü" * 200


def alert(number: int, **changes: Any) -> dict[str, Any]:
    made = {
        "id": f"order_brushing/shop/s1/{number}",
        "kind": "order_brushing",
        "subject_type": "shop",
        "subject": "s1",
        "score": 0.8,
        "probability": None,
        "severity": "medium",
        "event_time_ms": 1_700_000_000_000 + number,
        "reasons": [{"code": "order_brushing", "text": "5 orders of 1 buyer", "orders": 5, "ratio": 5.0}],
        "evidence": [
            {
                "order_id": "o1",
                "user_id": "u17",
                "event_time_ms": 1_700_000_000_000,
                "source": {"topic": "clicks", "partition": 3, "offset": 18842},
            }
        ],
        "members": ["u17"],
        "approximate": False,
        "supersedes": None,
        "held_back": 0,
    }
    return made | changes


def written(path: Path, *alerts: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in alerts))
    return path


def stored(number: int, supersedes: int | None = None) -> StoredAlert:
    earlier = None if supersedes is None else f"order_brushing/shop/s1/{supersedes}"
    found = alert_of(json.dumps(alert(number, supersedes=earlier)).encode())
    assert not isinstance(found, str)
    return StoredAlert(found, f"file:{number}", number)


@given(st.text(st.characters(), max_size=60), st.integers(1, 40))
def test_whatever_an_id_holds_it_is_shown_in_printable_characters(text: str, length: int) -> None:
    """No control character, no mark that turns text around, no half surrogate reaches a terminal; and a cut holds."""
    assert plain(text).isprintable()
    assert cut(text, length).isprintable()
    assert len(cut(text, length)) <= length
    plain(text).encode()


def test_plain_text_stays_as_it_is() -> None:
    """Escapes are for what cannot be shown."""
    assert plain("zoë 用户 7") == "zoë 用户 7"


@given(st.integers())
def test_every_time_can_be_shown(time_ms: int) -> None:
    """Also those that no calendar holds."""
    assert moment(time_ms)


def test_a_moment_is_a_span_before_now_or_a_time() -> None:
    """A time without a zone is UTC; anything else is an error that shows both ways to write it."""
    assert moment_of("90s", 100_000) == 10_000
    assert moment_of("2h", 7_200_000) == 0
    assert moment_of("1970-01-02", 5) == 86_400_000
    assert moment_of("1970-01-01T02:00+02:00", 5) == 0
    with pytest.raises(ConfigurationError, match="is no moment"):
        moment_of("yesterday", 5)


def test_a_line_names_severity_subject_score_and_the_reasons_words(tmp_path: Path) -> None:
    """What an analyst needs to decide whether to look closer."""
    ran = foreclick("alerts", "tail", "--file", written(tmp_path / "alerts", alert(1)))
    line = ran.out.splitlines()[0]
    for part in ("medium", "shop s1", "0.80", "5 orders of 1 buyer", "2023-11-14 22:13:20", "1 member"):
        assert part in line
    assert ran.out.splitlines()[-1] == "1 alerts: order_brushing 1"


def test_tail_chooses_by_kind_subject_member_and_time(tmp_path: Path) -> None:
    """The flags narrow together; a member is found like a subject, and churn means all kinds of churn."""
    file = written(
        tmp_path / "alerts",
        alert(1),
        alert(2, kind="churn.expected", subject_type="user", subject="u5", members=[]),
        alert(3, subject="s2", members=["u5"], event_time_ms=1_800_000_000_000),
    )

    def ids(*flags: str) -> list[int]:
        lines = foreclick("alerts", "tail", "--file", file, "--json", *flags).out.splitlines()
        return [int(json.loads(line)["id"].rpartition("/")[2]) for line in lines[:-1]]

    assert ids() == [1, 2, 3]
    assert ids("--kind", "churn") == [2]
    assert ids("--kind", "churn", "--kind", "order_brushing") == [1, 2, 3]
    assert ids("--kind", "order") == []
    assert ids("--subject", "u5") == [2, 3]
    assert ids("--subject", "u5", "--kind", "order_brushing") == [3]
    assert ids("--since", "2026-01-01") == [3]
    assert ids("--limit", "2") == [1, 2]


def test_json_of_tail_is_the_alerts_unchanged_and_then_their_count(tmp_path: Path) -> None:
    """A line of the output is a line of the topic."""
    file = tmp_path / "alerts.gz"
    file.write_bytes(gzip.compress((json.dumps(alert(1)) + "\n" + json.dumps(alert(2))).encode()))
    lines = foreclick("alerts", "tail", "--file", file, "--json").out.splitlines()
    assert [json.loads(line) for line in lines[:-1]] == [alert(1), alert(2)]
    assert json.loads(lines[-1]) == {"alerts": 2, "by_kind": {"order_brushing": 2}, "unreadable": 0}


def test_a_line_that_is_no_alert_is_told_and_the_others_are_shown(tmp_path: Path) -> None:
    """Nothing is skipped in silence; a file that holds none from its first line on is an error."""
    file = written(tmp_path / "alerts", alert(1))
    file.write_text(file.read_text() + '{"id": "\x1b[2J"}\n')
    ran = foreclick("alerts", "tail", "--file", file, "--json")
    assert (ran.json["alerts"], ran.json["unreadable"]) == (1, 1)
    assert "1 records are no alerts" in ran.err
    assert f"{file}:2" in ran.err
    assert "\x1b" not in ran.err
    file.write_text("user,item\n1,2\n")
    assert "is no alert" in foreclick("alerts", "tail", "--file", file).error
    assert "cannot be read" in foreclick("alerts", "tail", "--file", tmp_path / "none").error


def test_hostile_ids_reach_no_terminal(tmp_path: Path) -> None:
    """Escapes, markup and line breaks of an id, a member, a reason or an order are shown, not obeyed."""
    reason = {"code": HOSTILE, "text": HOSTILE, "note": HOSTILE}
    evidence = alert(1)["evidence"][0] | {"order_id": HOSTILE, "user_id": HOSTILE}
    made = alert(
        1, id=HOSTILE, kind=HOSTILE, subject=HOSTILE, reasons=[reason], evidence=[evidence], members=[HOSTILE]
    )
    file = written(tmp_path / "alerts", made)
    line = foreclick("alerts", "tail", "--file", file).out
    assert len(line.splitlines()) == 2
    whole = foreclick("alerts", "show", HOSTILE, "--file", file).out
    for shown in (line, whole):
        assert all(one.isprintable() or one == "\n" for one in shown)
        assert "[bold red]" in shown


def test_show_draws_everything_that_the_alert_says(tmp_path: Path) -> None:
    """Reasons with their numbers, evidence with its place in the source, members, what was held back and replaced."""
    first, last = (
        alert(1),
        alert(2, supersedes=alert(1)["id"], held_back=7, approximate=True, members=["u17", "u18"]),
    )
    file = written(tmp_path / "alerts", first, last)
    shown = " ".join(foreclick("alerts", "show", last["id"], "--file", file).out.replace("│", " ").split())
    for part in (
        "5 orders of 1 buyer",
        "orders 5, ratio 5",
        "order o1",
        "clicks[3]@18842",
        "u17, u18",
        "7 findings",
        "not calibrated yet",
        "a bound on memory",
        first["id"],
        "(this one)",
    ):
        assert part in shown


def test_show_takes_the_end_of_an_id_when_only_one_has_it(tmp_path: Path) -> None:
    """Otherwise the error says how many there are."""
    file = written(tmp_path / "alerts", alert(11), alert(21), alert(12))
    assert foreclick("alerts", "show", "/12", "--file", file, "--json").json["id"].endswith("/12")
    assert "2 alerts whose id ends" in foreclick("alerts", "show", "1", "--file", file).error
    assert "no alert" in foreclick("alerts", "show", "order_brushing/shop/s9/1", "--file", file).error


def test_a_chain_is_the_same_from_each_of_its_alerts() -> None:
    """Oldest first; what was read no more stands as its id; a ring ends."""
    chain = [stored(2, 1), stored(3, 2), stored(4, 3)]
    for each in chain:
        assert chain_of(each.alert.id, [stored(9), *reversed(chain)]) == ["order_brushing/shop/s1/1", *chain]
    ring = [stored(1, 2), stored(2, 1)]
    assert len(chain_of(ring[0].alert.id, ring)) == 2
    assert chain_of("unknown", chain) == []
