"""A round of the product: clean although its worker is killed and loses its disk, and not when bugs are planted.

Those are planted together, since each shows in a count of its own, and must all be caught within ROUNDS rounds.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from stream.broker import Broker
from tests.chaos.cluster import Round
from tests.chaos.product import Product, ProductFleet
from tests.chaos.test_planted_bugs import ROUNDS, caught
from tests.chaos.traffic import Clicks
from tests.chaos.verdict import Verdict

pytestmark = [pytest.mark.broker, pytest.mark.slow]

SESSION_TIMEOUT_S = 6.0
BLOCKS = 48  # of the traffic before and after the kill
#: Of the life that is killed: no source is quiet in it, so windows are open at the kill however slow the machine is.
OPEN_WINDOWS = ("--quiet-s", "600")
#: What each planted bug shows in, and none of the others.
NAMED = {"due-only-in-memory": "mismatching_groups", "timers-not-restored": "mismatching_local"}


def play(bootstrap: str, folder: Path, *switches: str) -> Verdict:
    """Half of the traffic, a kill -9, an empty data directory, the other half, silence."""
    round_ = Round(bootstrap, f"product-{uuid.uuid4().hex[:10]}", 2)
    fleet = ProductFleet(round_, folder, switches, SESSION_TIMEOUT_S)
    product = Product(round_, folder)
    product.create()
    try:
        for first in (0, BLOCKS):
            clicks = Clicks(product.settings, 0, seed=3, blocks=BLOCKS, first=first)
            clicks.start()
            clicks.finish()
            fleet.start("A", *(() if first else OPEN_WINDOWS))
            assert fleet.catch_up(), fleet.last_words()
            if not first:
                product.read_by_all(fleet)
                fleet.workers.pop("A").kill()
                fleet.wipe("A")
        product.finish_windows(fleet)
        fleet.stop()
        return product.judge(fleet.data_dirs)
    finally:
        fleet.end()
        product.delete()


@pytest.fixture(scope="module")
def rounds(
    broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[bool, Future[list[Verdict]]]]:
    """The verdicts without the planted bugs, and with them until each has shown itself."""
    folder = tmp_path_factory.mktemp("product")

    def verdicts(planted: bool) -> list[Verdict]:
        found: list[Verdict] = []
        switches = ["--planted", ",".join(NAMED)] if planted else []
        while len(found) < (ROUNDS if planted else 1) and not any(map(shows_all, found)):
            found.append(play(broker.bootstrap_servers, folder / f"{planted}-{len(found)}", *switches))
        return found

    with ThreadPoolExecutor(2) as lanes:
        yield {planted: lanes.submit(verdicts, planted) for planted in (False, True)}


def shows_all(verdict: Verdict) -> bool:
    return all(getattr(verdict, count) > 0 for count in NAMED.values())


def test_killed_product_is_exact_in_all_its_stages(rounds: dict[bool, Future[list[Verdict]]]) -> None:
    """Predictions, alerts of shops, items, users and silences, labels, rows and timers: as if nothing had happened."""
    (verdict,) = rounds[False].result()
    assert not caught(verdict), str(verdict)
    assert verdict.stores == 2 + 2 + 2, str(verdict)  # partitions of clicks, groups and labels
    least = {"order_brushing": 4, "click_farm": 4, "fake_account": 4, "churn.expected": 4}
    assert all(verdict.alert_kinds.get(kind, 0) >= count for kind, count in least.items()), str(verdict)
    assert verdict.labels.get("joined", 0) + verdict.labels.get("waiting", 0) > 0, str(verdict)
    assert verdict.labels.get("rejected", 0) > 0, str(verdict)


@pytest.mark.parametrize("bug", NAMED)
def test_planted_bug_of_the_product_is_caught(rounds: dict[bool, Future[list[Verdict]]], bug: str) -> None:
    """What a bug of the second stage or of timers breaks is found, and called by its name."""
    found = rounds[True].result()
    assert any(getattr(verdict, NAMED[bug]) > 0 for verdict in found), [str(verdict) for verdict in found]
