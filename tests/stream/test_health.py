"""What operators see: readiness with its reason, a guarded HTTP server, histograms that Prometheus can read."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from stream.errors import ConfigurationError, PortTaken
from stream.health import Health, readiness
from stream.metrics import ArrayHistogram
from stream.settings import Http


def health(http: Http, reason: str | None = None) -> Health:
    return Health(
        http,
        ready=lambda: reason,
        metrics=lambda: b"foreclick_up 1\n",
        state=lambda user: {"user_id": user} if user == "u/1" else None,
        stats=lambda: {"open": 8},
    )


def asked(server: Health, paths: list[str], token: str | None = None) -> list[tuple[int, Any]]:
    async def ask() -> list[tuple[int, Any]]:
        await server.start()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answers = []
        try:
            async with aiohttp.ClientSession(headers=headers) as session:
                for path in paths:
                    async with session.get(f"http://127.0.0.1:{server.port}{path}") as answer:
                        body = await answer.json() if "json" in answer.content_type else await answer.text()
                        answers.append((answer.status, body))
        finally:
            await server.stop()
        return answers

    return asyncio.run(ask())


def test_pages_answer_on_loopback_without_a_token() -> None:
    """The default: nobody else can reach it."""
    answers = asked(
        health(Http(port=0)), ["/healthz", "/readyz", "/metrics", "/state", "/state/u%2F1", "/state/u2"]
    )
    assert answers[0] == (200, {"alive": True})
    assert answers[1] == (200, {"ready": True, "reason": None})
    assert answers[2] == (200, "foreclick_up 1\n")
    assert answers[3] == (200, {"open": 8})
    assert answers[4] == (200, {"user_id": "u/1"})
    assert answers[5][0] == 404


def test_readyz_says_why_it_is_not_ready() -> None:
    """503 with a sentence, not a bare status."""
    assert asked(health(Http(port=0), "model not loaded"), ["/readyz"]) == [
        (503, {"ready": False, "reason": "model not loaded"})
    ]


def test_a_bind_outside_loopback_without_a_token_is_refused() -> None:
    """The state of users is behind these pages."""
    with pytest.raises(ConfigurationError, match="FORECLICK_HTTP__TOKEN_FILE"):
        health(Http(host="0.0.0.0"))


def test_with_a_token_only_healthz_is_open() -> None:
    """Probes of an orchestrator have no secrets."""
    guarded = Http(port=0, token=SecretStr("s3cret-token"))
    assert [status for status, _ in asked(health(guarded), ["/healthz", "/metrics", "/state/u1"])] == [
        200,
        401,
        401,
    ]
    assert [status for status, _ in asked(health(guarded), ["/metrics"], token="s3cret-token")] == [200]


def test_a_taken_port_is_named_with_the_setting() -> None:
    """The worker ends before it joins the group."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(PortTaken, match=f"Port {port} .*FORECLICK_HTTP__PORT"):
            asked(health(Http(port=port)), [])


def test_a_worker_whose_brokers_are_away_is_not_ready() -> None:
    """Of a broker that is away no lag is known: without records waiting an old commit would be no fault."""
    away = readiness({0: "open"}, lag_records=0, last_commit_s=5.0, unanswered_s=61.0, max_age_s=60)
    assert away == "broker away: no answer for 61 s"
    assert readiness({0: "open"}, lag_records=0, last_commit_s=5.0, unanswered_s=59.0, max_age_s=60) is None


@pytest.mark.parametrize(
    ("states", "lag", "last_commit_s", "reason"),
    [
        ({}, 0, None, "no partitions"),
        ({0: "open", 1: "restoring rows"}, 0, None, "recovering: 1 of 2"),
        ({0: "open"}, 0, 5.0, None),
        ({0: "open"}, 9, 95.0, None),
        ({0: "open"}, 9, 5.0, "commit too old: 95 s ago, with 9 records waiting"),
    ],
)
def test_readiness_is_about_partitions_and_commits(
    states: dict[int, str], lag: int, last_commit_s: float | None, reason: str | None
) -> None:
    """Old commits are a fault only while there is something to commit."""
    found = readiness(states, lag_records=lag, last_commit_s=last_commit_s, max_age_s=60, now_s=100.0)
    assert found is reason is None or (found is not None and reason is not None and found.startswith(reason))


def test_array_histogram_counts_as_prometheus_own() -> None:
    """Thousands of observations at once land in the buckets where single ones would."""
    bounds = (0.1, 0.5, 1.0, 2.0)
    values = np.array([0.1, 0.05, 0.5000001, 1.0, 7.0, 2.0, 0.3])
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    ArrayHistogram("h", "text", bounds, ours).observe(values)
    single = Histogram("h", "text", buckets=bounds, registry=theirs)
    for value in values.tolist():
        single.observe(value)

    def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
        families = text_string_to_metric_families(generate_latest(registry).decode())
        return {
            (sample.name, sample.labels.get("le", "")): pytest.approx(sample.value)
            for family in families
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    assert samples(ours) == samples(theirs)
