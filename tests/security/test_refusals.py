"""What a broker that does not trust us, or that we do not trust, is answered with: one line that names the setting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stream.broker import Broker
from stream.broker.jars import java_command
from stream.broker.secured import Security
from tests.command_line import foreclick
from tests.security.conftest import Start, Variables

pytestmark = [pytest.mark.broker, pytest.mark.slow]

IN_TIME_S = 30.0
Change = Callable[[], tuple[Variables, list[str]]]


@pytest.fixture
def changes(expired: Broker, tmp_path: Path) -> dict[str, Change]:
    """By refusal: the settings that lead to it, and what must be in the error."""

    def wrong_password() -> tuple[Variables, list[str]]:
        file = tmp_path / "wrong"
        file.write_text("wrong-password")
        return {"KAFKA__SASL_PASSWORD_FILE": file}, ["SASL_PASSWORD_FILE", "refuses user foreclick"]

    def unknown_ca() -> tuple[Variables, list[str]]:
        other = Security(tmp_path)
        other.make(java_command())
        return {"KAFKA__SSL_CA_LOCATION": other.ca}, ["SSL_CA_LOCATION", "authority that is not trusted"]

    def expired_certificate() -> tuple[Variables, list[str]]:
        return {"KAFKA__BOOTSTRAP_SERVERS": expired.bootstrap_servers}, ["has expired", "Renew it"]

    def plain_client() -> tuple[Variables, list[str]]:
        return {"KAFKA__SECURITY_PROTOCOL": "PLAINTEXT"}, ["SECURITY_PROTOCOL", "speaks TLS"]

    def wrong_mechanism() -> tuple[Variables, list[str]]:
        return {"KAFKA__SASL_MECHANISM": "SCRAM-SHA-256"}, ["SASL_MECHANISM", "SCRAM-SHA-512"]

    def no_user() -> tuple[Variables, list[str]]:
        return {"KAFKA__SECURITY_PROTOCOL": "SSL"}, ["SECURITY_PROTOCOL", "It wants a user"]

    made = (wrong_password, unknown_ca, expired_certificate, plain_client, wrong_mechanism, no_user)
    return {change.__name__: change for change in made}


def sound(said: str, code: int | None, took_s: float, parts: list[str]) -> None:
    """One line, not a traceback; another exit code than 0; in time; it names what it should."""
    assert code not in (0, None), said
    assert took_s < IN_TIME_S
    lines = [line for line in said.splitlines() if line]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    for part in [*parts, "FORECLICK_KAFKA__"]:
        assert part in lines[0], lines[0]
    assert "wrong-password" not in said


@pytest.mark.parametrize("refusal", ["wrong_password", "unknown_ca", "expired_certificate", "plain_client"])
def test_the_worker_ends_with_one_line(
    refusal: str, changes: dict[str, Change], variables: Variables, start: Start
) -> None:
    """It does not try for ever: a supervisor sees the exit code, a person the sentence."""
    changed, parts = changes[refusal]()
    began = time.monotonic()
    worker = start(variables | changed, "stream.cli", "worker")
    code = worker.process.wait(IN_TIME_S * 2)
    sound(worker.said.read_text(), code, time.monotonic() - began, parts)


def test_started_by_faust_it_ends_alike(
    changes: dict[str, Change], variables: Variables, start: Start
) -> None:
    """Faust's banner, then the one line instead of the library's traceback."""
    changed, parts = changes["wrong_password"]()
    began = time.monotonic()
    worker = start(variables | changed, "faust", "-A", "stream.app", "worker", "--loglevel", "warn")
    assert worker.process.wait(IN_TIME_S * 2) == 1
    assert time.monotonic() - began < IN_TIME_S
    said = worker.said.read_text()
    assert "Traceback" not in said
    # Faust leaves its cursor's control codes before it.
    (line,) = [line[line.index("{") :] for line in said.splitlines() if "process ended" in line]
    assert all(part in json.loads(line)["message"] for part in parts)


@pytest.mark.parametrize(
    "refusal",
    ["wrong_password", "unknown_ca", "expired_certificate", "plain_client", "wrong_mechanism", "no_user"],
)
def test_a_command_ends_with_one_line(refusal: str, changes: dict[str, Change], variables: Variables) -> None:
    """The first of them that anybody runs."""
    changed, parts = changes[refusal]()
    began = time.monotonic()
    ran = foreclick("topics", "create", **(variables | changed))
    sound(ran.err, ran.code, time.monotonic() - began, parts)


@pytest.mark.parametrize(
    "command", ["replay", "state verify", "state reset --to latest --yes", "dlq list", "dlq replay"]
)
def test_every_command_says_it_alike(
    command: str, changes: dict[str, Change], variables: Variables, tmp_path: Path
) -> None:
    """A wrong password, by whatever way it is noticed."""
    changed, parts = changes["wrong_password"]()
    log = tmp_path / "clicks.jsonl"
    log.write_text('{"user_id": "u1", "event_time_ms": 1700000000000, "action": "view"}\n')
    began = time.monotonic()
    ran = foreclick(*command.split(), *([log] if command == "replay" else []), **(variables | changed))
    sound(ran.err, ran.code, time.monotonic() - began, parts)


def test_doctor_finds_it_and_goes_on(changes: dict[str, Change], variables: Variables) -> None:
    """A broker that refuses does not hide what is wrong with the model."""
    changed, parts = changes["wrong_password"]()
    ran = foreclick("doctor", **(variables | changed))
    assert ran.code == 1
    findings = ran.out.splitlines()
    assert findings[0].startswith("fail ")
    assert all(part in findings[0] for part in parts)
    assert any(line.startswith("ok") and "Model" in line for line in findings)


def test_tls_against_a_plain_broker_is_named(broker: Broker, variables: Variables) -> None:
    """The other way round."""
    changed = variables | {"KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers}
    ran = foreclick("topics", "create", **changed)
    sound(ran.err, ran.code, 0, ["SECURITY_PROTOCOL", "does not answer TLS"])
