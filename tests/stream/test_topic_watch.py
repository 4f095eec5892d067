"""Watching the topics of an engine and the brokers that know them, on answers by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from stream.engine.kafka_log import TopicSet
from stream.engine.topic_watch import ANSWER_S, GONE_S, TopicWatch
from stream.engine.wire import TopicSeen
from stream.errors import TopicError

SOURCE_ID, CHANGELOG_ID = b"s" * 16, b"c" * 16
BOTH = {"clicks": TopicSeen(SOURCE_ID, 8), "changelog": TopicSeen(CHANGELOG_ID, 8)}
TOPICS = TopicSet("clicks", SOURCE_ID, "changelog", CHANGELOG_ID, {}, 0)
Answer = Mapping[str, TopicSeen] | None  # None: no broker answers


class Brokers:
    """Answers as written, and a clock that goes on by a second with each."""

    def __init__(self, answers: list[Answer]):
        self._answers: Iterator[Answer] = iter(answers)
        self.now_s, self.asked_for_addresses = 0.0, 0

    def get_random_node(self) -> int:
        return 0

    async def send(self, node: int, request: Any) -> Mapping[str, TopicSeen]:
        self.now_s += 1.0
        if (answer := next(self._answers)) is None:
            raise ConnectionResetError("away")
        return answer

    async def force_metadata_update(self) -> None:
        self.asked_for_addresses += 1


def watched(answers: list[Answer]) -> tuple[TopicWatch, Brokers]:
    """What a watch makes of the answers."""
    brokers = Brokers(answers)
    watch = TopicWatch({}, TOPICS, clock=lambda: brokers.now_s)
    watch._client = brokers

    async def looks() -> None:
        for _ in answers:
            await watch.look()

    asyncio.run(looks())
    return watch, brokers


def test_a_topic_that_is_gone_for_good_ends_the_worker() -> None:
    """Left running it would own no partition and wait in silence for a topic that nobody makes."""
    gone: list[Answer] = [{**BOTH, "clicks": TopicSeen(bytes(16), 0)}] * int(GONE_S + 1)
    with pytest.raises(TopicError, match=r"Topic clicks does not exist any more.*foreclick topics create"):
        watched([BOTH, *gone])


def test_a_topic_that_is_not_known_for_a_moment_is_waited_for() -> None:
    """A broker that has just started answers before it knows all topics, whatever time passed while it was away."""
    unknown: list[Answer] = [{}] * int(GONE_S - 1)
    away: list[Answer] = [None] * int(ANSWER_S + GONE_S)
    watched([BOTH, *unknown, BOTH, *unknown, *away, *unknown, BOTH])


def test_a_changelog_that_is_another_one_names_the_way_out_of_its_stage() -> None:
    """Whoever begins anew with labels need not forget the rows of users."""
    brokers = Brokers([{**BOTH, "changelog": TopicSeen(SOURCE_ID, 8)}])
    watch = TopicWatch({}, replace(TOPICS, fresh_start="As of this stage."), clock=lambda: brokers.now_s)
    watch._client = brokers
    with pytest.raises(TopicError, match=r"Changelog changelog was deleted .* As of this stage\."):
        asyncio.run(watch.look())


def test_partitions_that_are_added_end_the_worker() -> None:
    """Users whose keys lead to other partitions now would silently get rows anew."""
    with pytest.raises(
        TopicError, match="Topic clicks has 10 partitions by now, its changelog changelog has 8"
    ):
        watched([BOTH, {**BOTH, "clicks": TopicSeen(SOURCE_ID, 10)}])


def test_brokers_that_do_not_answer_are_timed_and_sought() -> None:
    """The time since the last answer is what /metrics and /readyz say; meanwhile brokers may have other addresses."""
    watch, brokers = watched([BOTH, None, None, None])
    assert watch.unanswered_s == 3.0
    assert brokers.asked_for_addresses == 3
    assert watched([BOTH, None, BOTH])[0].unanswered_s == 0.0


def test_a_watch_that_was_stopped_asks_nothing_more() -> None:
    """A worker that ends stops it in the middle of whatever it does: it is no failure of the worker."""
    brokers = Brokers([BOTH])
    watch = TopicWatch({}, TOPICS, clock=lambda: brokers.now_s)

    class Closing(Brokers):
        async def send(self, node: int, request: Any) -> Mapping[str, TopicSeen]:
            watch._client = None  # stopped while its answer is waited for
            return await super().send(node, request)

    last = Closing([None])
    watch._client = last
    asyncio.run(watch.look())
    asyncio.run(watch.run())
    assert (last.now_s, last.asked_for_addresses, brokers.now_s) == (1.0, 0, 0.0)
