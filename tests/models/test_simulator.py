"""Laws of the simulator: the same seed is the same log, and the log is worth learning from."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import median

import msgspec
import pytest

from models.simulator.dirt import KINDS, Record, soil
from models.simulator.shop import CATEGORIES, open_shop
from models.simulator.simulate import SimulatedEvent, Simulation, SimulationError, simulate
from models.vocabulary import DEFAULT_ACTIONS
from stream.events import Event, Rejection, decode_events
from tests.command_line import foreclick


@cache
def simulation() -> Simulation:
    """One log for all tests that only look."""
    return simulate(900, 30_000, seed=3)


def by_user(events: list[SimulatedEvent]) -> dict[str, list[SimulatedEvent]]:
    """The events of each user, in time order."""
    users: defaultdict[str, list[SimulatedEvent]] = defaultdict(list)
    for event in events:
        users[event.user_id].append(event)
    return users


def simulated_bytes(seed: int) -> bytes:
    """A small log as it is written."""
    return msgspec.json.encode(simulate(30, 400, seed))


def test_the_same_seed_gives_the_same_bytes() -> None:
    """A log can be named by its arguments; another seed is another crowd."""
    assert simulated_bytes(1) == simulated_bytes(1)
    assert simulated_bytes(1) != simulated_bytes(2)


def test_the_log_has_the_events_asked_for_in_time_order() -> None:
    """Exactly so many events, ordered by time, strictly so within a user, with ids used once."""
    events = simulation().events
    assert len(events) == 30_000
    times = [event.event_time_ms for event in events]
    assert times == sorted(times)
    for own in by_user(events).values():
        assert all(a.event_time_ms < b.event_time_ms for a, b in pairwise(own))
    assert len({event.event_id for event in events}) == len(events)
    assert 12 <= (times[-1] - times[0]) / 86_400_000 <= 16


def test_every_event_is_canonical_and_of_the_catalogue() -> None:
    """The decoder takes them all; categories, items and prices are the shop's; only purchases have an order."""
    events = simulation().events
    keys, values = [e.user_id.encode() for e in events], [msgspec.json.encode(e) for e in events]
    assert all(isinstance(event, Event) for event in decode_events(keys, values))
    prices = {item.id: item.price for shelf in open_shop().items for item in shelf}
    for event in events:
        assert event.category_id in CATEGORIES
        assert event.action in DEFAULT_ACTIONS
        assert (event.item_id is None) == (event.action == "search")
        assert event.price == (prices[event.item_id] if event.item_id else None)
        assert (event.order_id is not None) == (event.action == "purchase")


def test_actions_have_a_believable_mixture() -> None:
    """Views lead, 2 to 4 % are purchases, every default action occurs, and chance alone is far from certain."""
    shares = {
        action: n / 30_000 for action, n in Counter(event.action for event in simulation().events).items()
    }
    assert set(shares) == set(DEFAULT_ACTIONS)
    assert max(shares, key=shares.__getitem__) == "view"
    assert 0.02 <= shares["purchase"] <= 0.04
    assert 1.4 <= -sum(share * log(share) for share in shares.values()) <= 1.9


def test_labels_name_every_user_and_stay_out_of_the_events() -> None:
    """About 2 % are crawlers; nothing in an event says so, the user id included."""
    events, labels = simulation()
    assert [label.user_id for label in labels] == sorted(by_user(events))
    assert 0.005 <= sum(label.label == "crawler" for label in labels) / len(labels) <= 0.045
    assert b"crawler" not in msgspec.json.encode(events)


def test_crawlers_keep_time_and_people_do_not() -> None:
    """Within a visit a crawler's gaps hardly vary, a person's vary by their own size."""
    events, labels = simulation()
    crawlers = {label.user_id for label in labels if label.label == "crawler"}
    spread: defaultdict[bool, list[float]] = defaultdict(list)
    for user, own in by_user(events).items():
        gaps = [b.event_time_ms - a.event_time_ms for a, b in pairwise(own)]
        if len(gaps := [gap for gap in gaps if gap < 1_800_000]) > 10:
            middle = median(gaps)
            spread[user in crawlers].append(median(abs(gap - middle) for gap in gaps) / middle)
    assert max(spread[True]) < 0.05
    assert median(spread[False]) > 0.3


def test_gaps_between_visits_are_heavy_tailed() -> None:
    """People come back after hours, days, and some after a week and more."""
    hours = sorted(
        gap / 3_600_000
        for own in by_user(simulation().events).values()
        for a, b in pairwise(own)
        if (gap := b.event_time_ms - a.event_time_ms) > 1_800_000
    )
    assert hours[len(hours) // 20] < 12
    assert hours[len(hours) * 99 // 100] > 4 * hours[len(hours) // 2]
    assert hours[-1] > 7 * 24


def log_loss(context: Callable[[list[SimulatedEvent], int], tuple[object, ...]]) -> float:
    """Nats an event of counts by context on the quarter of users that was not counted, backed off to its prefix."""
    users = list(by_user(simulation().events).values())
    counts: defaultdict[tuple[object, ...], Counter[str]] = defaultdict(Counter)

    def contexts(own: list[SimulatedEvent]) -> Iterator[tuple[tuple[object, ...], str]]:
        for n in range(len(own) - 1):
            yield context(own, n), own[n + 1].action

    for number, own in enumerate(users):
        if number % 4:
            for known, following in contexts(own):
                for length in range(len(known) + 1):
                    counts[known[:length]][following] += 1
    losses = []
    for own in users[::4]:
        for known, following in contexts(own):
            probability = 1 / len(DEFAULT_ACTIONS)
            for length in range(len(known) + 1):
                seen = counts[known[:length]]
                probability = (seen[following] + 10 * probability) / (seen.total() + 10)
            losses.append(-log(probability))
    return sum(losses) / len(losses)


def markov(own: list[SimulatedEvent], n: int) -> tuple[object, ...]:
    """The last two actions."""
    return own[n].action, own[n - 1].action if n else None


def longer(own: list[SimulatedEvent], n: int) -> tuple[object, ...]:
    """The last four actions."""
    return *markov(own, n), *(own[n - k].action if n >= k else None for k in (2, 3))


def returning(own: list[SimulatedEvent], n: int) -> tuple[object, ...]:
    """Beside the last two actions: how often this product was among the eight before."""
    item_id = own[n].item_id
    return *markov(own, n), item_id and sum(event.item_id == item_id for event in own[max(0, n - 8) : n])


def timed(own: list[SimulatedEvent], n: int) -> tuple[object, ...]:
    """Beside the last two actions: how long the last pause was."""
    gap_s = (own[n].event_time_ms - own[n - 1].event_time_ms) / 1000 if n else 0
    return (*markov(own, n), sum(gap_s > limit for limit in (4, 10, 30, 1800)))


def test_order_matters_beyond_the_last_two_actions() -> None:
    """What happened before the last two actions is worth 0.03 nats on users not seen, returns to a product 0.02."""
    assert log_loss(longer) < log_loss(markov) - 0.03
    assert log_loss(returning) < log_loss(markov) - 0.02


def test_time_matters() -> None:
    """The length of the last pause alone beats a Markov chain of order 2 by 0.02 nats on users not seen."""
    assert log_loss(timed) < log_loss(markov) - 0.02


def test_a_cart_left_for_hours_leads_to_checkout_and_a_fresh_one_does_not() -> None:
    """After a view with something in the cart, checkout is far likelier when the person has been away."""
    followed: defaultdict[bool, list[bool]] = defaultdict(list)
    for own in by_user(simulation().events).values():
        for n in range(1, len(own) - 1):
            recent = [event.action for event in own[max(0, n - 6) : n]]
            if own[n].action == "view" and "cart" in recent and "purchase" not in recent:
                away = own[n].event_time_ms - own[n - 1].event_time_ms > 3_600_000
                followed[away].append(own[n + 1].action == "checkout")
    assert len(followed[True]) > 100
    share = {away: sum(found) / len(found) for away, found in followed.items()}
    assert share[True] > 1.3 * share[False]


def test_numbers_that_make_no_log_are_refused() -> None:
    """The message names them all and what to give."""
    with pytest.raises(SimulationError, match=r"0 events of 5 users .* one event"):
        simulate(5, 0, seed=1)


# ---- dirt


@cache
def clean_records() -> list[Record]:
    """The log as keyed records."""
    return [Record(event.user_id.encode(), msgspec.json.encode(event)) for event in simulation().events]


def test_dirt_is_what_it_says() -> None:
    """Counted by the pipeline's own rules, what was put in is what is found; nothing of the original is lost."""
    soiled, injected = soil(clean_records(), 0.06, seed=1)
    assert set(injected) == set(KINDS)
    assert all(n == 300 for n in injected.values())
    found: Counter[str] = Counter()
    last_ms: dict[str, int] = {}
    seen: defaultdict[str, list[str | None]] = defaultdict(list)
    applied = set()
    keys, values = [record.key for record in soiled], [record.value for record in soiled]
    for record, event in zip(soiled, decode_events(keys, values), strict=True):
        if isinstance(event, Rejection):
            found[event.reason] += 1
            continue
        assert event is not None
        behind_ms = last_ms.get(event.user_id, 0) - event.event_time_ms
        if event.event_id in seen[event.user_id][-16:]:
            found["duplicate"] += 1
        elif behind_ms > 1_800_000:
            found["late_hours"] += 1
            applied.add(record.value)
        else:
            found["late_minutes"] += behind_ms > 0
            seen[event.user_id].append(event.event_id)
            last_ms[event.user_id] = max(event.event_time_ms, last_ms.get(event.user_id, 0))
            applied.add(record.value)
    assert found == Counter(injected)
    assert applied == {record.value for record in clean_records()}


def test_dirt_depends_on_its_seed_alone() -> None:
    """The same arguments give the same records; no share gives the records themselves."""
    records = clean_records()[:3000]
    assert soil(records, 0.03, seed=1) == soil(records, 0.03, seed=1)
    assert soil(records, 0.03, seed=1) != soil(records, 0.03, seed=2)
    assert soil(records, 0.0, seed=1).records == records


# ---- the command


def run(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[bytes]:
    """``foreclick simulate`` in a process of its own."""
    command = [sys.executable, "-m", "stream.cli", "simulate", *arguments]
    return subprocess.run(
        command, capture_output=True, check=False, env=os.environ | {"PYTHONHASHSEED": hash_seed}
    )


def test_the_command_writes_the_same_archive_in_every_process(tmp_path: Path) -> None:
    """Neither the hour, the file's name nor the process's hashing is in the bytes; the last line is JSON."""
    sizes = ("--users", "40", "--events", "500", "--dirt", "0.05", "--json")
    first = run(*sizes, "--out", str(tmp_path / "a.gz"), "--labels", str(tmp_path / "l"), hash_seed="1")
    again = run(*sizes, "--out", str(tmp_path / "b.jsonl.gz"), hash_seed="2")
    assert first.returncode == again.returncode == 0
    packed = (tmp_path / "a.gz").read_bytes()
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()
    said = json.loads(first.stdout.splitlines()[-1])
    assert said["events"] == 500
    assert said["records"] == len(gzip.decompress(packed).splitlines())
    labels = [json.loads(line) for line in (tmp_path / "l").read_bytes().splitlines()]
    assert said["users"] == len(labels)
    assert sum(label["label"] == "crawler" for label in labels) == said["crawlers"]


def test_standard_output_holds_nothing_but_the_log(tmp_path: Path) -> None:
    """What is said besides goes to standard error, so that the log can be piped; bad paths are one line."""
    piped = run("--users", "5", "--events", "50", "--out", "-", "--json")
    assert len([json.loads(line)["user_id"] for line in piped.stdout.splitlines()]) == 50
    assert json.loads(piped.stderr.splitlines()[-1])["events"] == 50
    refused = run("--users", "5", "--events", "50", "--out", str(tmp_path / "nowhere" / "log"))
    assert refused.returncode == 1
    assert refused.stderr.startswith(b"error: ")
    assert b"Traceback" not in refused.stderr


@cache
def small_csv() -> str:
    """A log as a shop exports it: other names, semicolons, no header, one line that is no event."""
    events = simulate(60, 1500, seed=4).events
    names = {"view": "view", "cart": "cart", "purchase": "purchase"}
    rows = [
        f"{int(event.user_id[1:]) + 500};{event.item_id};{event.category_id};{names[event.action]};"
        f"{event.event_time_ms // 1000}"
        for event in events
        if event.action in names
    ]
    return "\n".join([*rows, "77;x;y;view;soon"]) + "\n"


CSV_FLAGS = ("--columns", "user=1,item=2,category=3,action=4,time=5", "--no-header", "--delimiter", ";")


def test_attacks_go_into_a_real_log_in_time_order(tmp_path: Path) -> None:
    """Canonical lines, packed by name; the log's own are all there; what was no event is counted; labels for all."""
    log, out, labels = tmp_path / "log.csv", tmp_path / "out.jsonl.gz", tmp_path / "labels.jsonl"
    log.write_text(small_csv())
    arguments = ("--inject-into", str(log), *CSV_FLAGS, "--time-format", "s", "--attacks", "burst=5,replay=3")
    flags = ("--negatives", "families=1", "--seed", "9", "--labels", str(labels), "--json")
    ran = run(*arguments, *flags, "--out", str(out), hash_seed="1")
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    lines = [json.loads(line) for line in gzip.decompress(out.read_bytes()).splitlines()]
    assert said["records"] == len(lines) == small_csv().count("\n") - 1 + said["scripted_events"]
    assert said["left_out"] == {"undecodable": 1}
    assert said["accounts"]["burst"] == 5
    times = [line["event_time_ms"] for line in lines]
    assert times == sorted(times)
    truth = [json.loads(line) for line in labels.read_bytes().splitlines()]
    assert [label["user_id"] for label in truth] == sorted({line["user_id"] for line in lines})
    assert Counter(label["label"] for label in truth)["fake"] == said["fake"] == 8
    assert all(label["source_user"] for label in truth if label["kind"] == "replay")
    again = run(*arguments, *flags, "--out", str(tmp_path / "b.gz"), hash_seed="2")
    assert again.returncode == 0
    assert (tmp_path / "b.gz").read_bytes() == out.read_bytes()


def test_attacks_join_the_simulated_people(tmp_path: Path) -> None:
    """The people are those of the same seed without attacks; crawlers of the shop keep their label."""
    sizes = ("--users", "60", "--events", "1500", "--seed", "2")
    alone, joined = tmp_path / "alone", tmp_path / "joined"
    assert run(*sizes, "--out", str(alone), "--labels", str(tmp_path / "who")).returncode == 0
    ran = run(
        *sizes, "--attacks", "drip=4", "--out", str(joined), "--labels", str(tmp_path / "truth"), "--json"
    )
    said = json.loads(ran.stdout.splitlines()[-1])
    people = alone.read_bytes().splitlines()
    lines = joined.read_bytes().splitlines()
    assert len(lines) == said["records"] == 1500 + said["scripted_events"]
    assert [line for line in lines if line in set(people)] == people
    truth = {
        label["user_id"]: label for label in map(json.loads, (tmp_path / "truth").read_bytes().splitlines())
    }
    for who in map(json.loads, (tmp_path / "who").read_bytes().splitlines()):
        assert truth[who["user_id"]]["label"] == ("crawler" if who["label"] == "crawler" else "honest")
    assert sum(label["label"] == "fake" for label in truth.values()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--attacks", "brust=3"), "--attacks has an unknown kind 'brust'. Use burst, coattail"),
        (("--attacks", "burst=0"), "--attacks burst has the count '0'"),
        (("--attacks", "burst"), "--attacks burst has the count ''"),
        (("--attacks", "drip=-1"), "--attacks drip has the count '-1'"),
        (("--attacks", "drip=1,drip=2"), "--attacks names drip twice"),
        (("--negatives", "burst=1"), "--negatives has an unknown kind 'burst'. Use flash_sale"),
        (("--inject-into", "LOG"), "--inject-into has nothing to put in"),
        (("--inject-into", "LOG", "--attacks", "burst=1", "--users", "5"), "--users is of a simulated shop"),
        (("--attacks", "burst=1", "--format", "taobao"), "--format describes the log of --inject-into"),
        (("--inject-into", "EMPTY", "--attacks", "burst=1"), "is empty"),
        (("--inject-into", "BROKEN", "--attacks", "burst=1"), "holds no event to put others among"),
        (("--inject-into", "NOWHERE", "--attacks", "burst=1"), "There is no file"),
    ],
)
def test_what_cannot_be_put_in_is_refused_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """The flag or the file, what is wrong with it, and what to write instead; no output appears."""
    (tmp_path / "LOG").write_bytes(b'{"user_id":"u1","event_time_ms":5,"action":"view"}\n')
    (tmp_path / "EMPTY").write_bytes(b"")
    (tmp_path / "BROKEN").write_bytes(b'{"user_id":"u1"}\n{"user_id":\n')
    paths = {name: str(tmp_path / name) for name in ("LOG", "EMPTY", "BROKEN", "NOWHERE")}
    out = tmp_path / "out"
    ran = foreclick("simulate", *(paths.get(each, each) for each in arguments), "--out", out)
    assert ran.code != 0
    assert message in ran.error
    assert not out.exists()
