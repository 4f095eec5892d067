"""A user's timeline: what is shown of whom, in the terminal, on the page and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stream.alerts import Alert
from stream.events import Event
from stream.partitioner import murmur2, partition_of
from stream.timeline import Prediction, prediction_of, timeline
from stream.timeline_drawing import timeline_page
from stream.wording import plain
from tests.command_line import foreclick
from tests.stream.test_alerts_shown import HOSTILE, alert

START_MS = 1_700_000_000_000


def scored(
    user: str, number: int, *, session: int = 1, nats: float = 2.0, offset: int | None = None
) -> dict[str, Any]:
    return {
        "schema": "foreclick.prediction.v1",
        "user_id": user,
        "event_id": f"e{number}",
        "event_time_ms": START_MS + number * 60_000,
        "source": {"topic": "log", "partition": 0, "offset": number if offset is None else offset},
        "session": {"index": session, "position": 1},
        "next_action": {"view": 0.75, "cart": 0.03},
        "median_gap_s": 41.0,
        "anomaly": {
            "score": 0.97,
            "surprisal_nats": nats,
            "too_predictable": 0.1,
            "reasons": [
                {"code": "unlikely_action", "nats": nats - 0.5},
                {"code": "unlikely_gap", "nats": 0.5},
            ],
        },
    }


def event(user: str, number: int, action: str = "cart", item: str = "i3") -> dict[str, Any]:
    return {
        "user_id": user,
        "event_time_ms": START_MS + number * 60_000,
        "action": action,
        "event_id": f"e{number}",
        "item_id": item,
        "category_id": "shoes",
    }


def written(path: Path, objects: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return path


def prediction(user: str, number: int, **options: Any) -> Prediction:
    made = prediction_of(json.dumps(scored(user, number, **options)).encode())
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        # The values of Kafka's own tests (UtilsTest.testMurmur2), unsigned.
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_fall_where_java_clients_put_them(key: bytes, expected: int) -> None:
    """The hash is Kafka's, and the partition is taken of its lower 31 bits."""
    assert murmur2(key) == expected % 2**32
    assert partition_of(key, 8) == (expected % 2**32 & 0x7FFFFFFF) % 8


def test_a_timeline_shows_sessions_steps_terms_and_alerts_where_they_were_possible(tmp_path: Path) -> None:
    """The user's own events alone, in groups, with an alert after the event that made it possible."""
    predictions = [
        scored("u1", 0),
        scored("u2", 1),
        scored("u1", 2, nats=6.0),
        scored("u1", 90, session=2, offset=3),
    ]
    log = [event("u1", 0, "view"), event("u2", 1, item="secret"), event("u1", 2), event("u1", 90)]
    found = alert(
        1,
        members=["u1"],
        event_time_ms=START_MS + 130_000,
        evidence=[{"user_id": "u1", "source": {"topic": "log", "partition": 0, "offset": 2}}],
    )
    ran = foreclick(
        *("explain", "u1", "--file", written(tmp_path / "scored", predictions)),
        *("--events", written(tmp_path / "log", log), "--alerts", written(tmp_path / "alerts", [found])),
    )
    text = ran.out
    order = ["Session 1", "view", "cart", "order_brushing", "5 orders of 1 buyer", "Session 2"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "secret" not in text
    assert "about shop s1, a member" in text
    words = " ".join(text.split())
    assert "action 5.5 gap 0.5" in words
    assert "3% likely" in words
    assert text.count("*") == 1  # the one event that the alert rests on


def test_programs_get_every_step_with_its_terms(tmp_path: Path) -> None:
    """Terms add up to the surprisal; without the log, action and item are not known and not made up."""
    file = written(tmp_path / "scored", [scored("u1", 0), scored("u1", 2, nats=6.0)])
    made = foreclick("explain", "u1", "--file", file, "--json").json
    assert (made["events"], made["sessions"], made["most_surprising_nats"]) == (2, 1, 6.0)
    for step in made["steps"]:
        assert sum(step["terms"].values()) == pytest.approx(step["surprisal_nats"])
        assert (step["action"], step["item_id"], step["expected_probability"]) == (None, None, None)
    assert [step["gap_s"] for step in made["steps"]] == [None, 120.0]


def test_the_newest_events_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    """A user of years fits a terminal."""
    file = written(tmp_path / "scored", [scored("u1", number) for number in range(10)])
    made = foreclick("explain", "u1", "--file", file, "--last", 3, "--json").json
    assert [step["event_id"] for step in made["steps"]] == ["e7", "e8", "e9"]
    assert made["earlier_events"] == 7
    assert made["steps"][0]["gap_s"] == 60.0


def test_an_unknown_user_is_an_error_that_says_what_was_read(tmp_path: Path) -> None:
    """How much, and where; the id is shown as plain text."""
    file = written(tmp_path / "scored", [scored("u1", 0), scored("u2", 1)])
    error = foreclick("explain", "u3\x1b[2J", "--file", file).error
    assert "No prediction for user" in error
    assert f"the 2 lines of {file}" in error
    assert "\x1b" not in error


def test_another_log_than_the_scored_one_is_an_error(tmp_path: Path) -> None:
    """Actions of somebody else would be a lie."""
    file = written(tmp_path / "scored", [scored("u1", 0)])
    other = written(tmp_path / "log", [event("u2", 0)])
    assert "is not the event that" in foreclick("explain", "u1", "--file", file, "--events", other).error
    assert "is no prediction" in foreclick("explain", "u2", "--file", other).error
    assert "belong to --file" in foreclick("explain", "u1", "--events", other).error


class _Page(HTMLParser):
    """Collects tags, and everything that could load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.active: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.active += [
            name for name, value in attrs if name.startswith("on") or name in ("src", "href", "action")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "name", [HOSTILE, '"><img src=x onerror=alert(1)>', "</style></svg><base href=//e>", "ü" * 256]
)
def test_the_page_holds_no_markup_of_anybody_else(name: str) -> None:
    """Users, items, actions and reasons are text on it; it runs nothing and loads nothing."""
    made = Event(user_id=name, event_time_ms=START_MS, action=name, item_id=name, category_id=name)
    about = alert(1, id=name, kind=name, subject=name, members=[name], reasons=[{"code": name, "text": name}])
    step = prediction(name, 0)
    found = timeline(name, [step], {step.place: made}, [_alert(about)], last=10, notes=[name], read=name)
    page = _Page()
    page.feed(timeline_page(found))
    assert page.tags.isdisjoint({"script", "img", "iframe", "object", "embed", "link", "base", "form"})
    # matplotlib refers to its own glyphs and clips by #id.
    assert page.active == []
    assert plain(name) in page.text


def _alert(fields: dict[str, Any]) -> Alert:
    return Alert(**fields)


def test_the_page_is_written_whole_and_names_no_host(tmp_path: Path) -> None:
    """One file that can be sent to somebody."""
    file = written(tmp_path / "scored", [scored("u1", 0), scored("u1", 2, nats=6.0)])
    ran = foreclick("explain", "u1", "--file", file, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert ran.code == 0
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert "<svg" in page
    assert "://" not in page
