"""Everything that talks to Kafka, over SASL_SSL with SCRAM-SHA-512; and no secret in anything that it leaves behind."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from stream.broker import Broker
from tests.command_line import Ran, foreclick
from tests.security.conftest import TOKEN, Process, Start, Variables

pytestmark = [pytest.mark.broker, pytest.mark.slow]

READY_S = 90.0
EVENTS = 40


def ask(variables: Variables, path: str, authorization: str | None = None) -> tuple[int, bytes]:
    headers = {} if authorization is None else {"Authorization": authorization}
    request = urllib.request.Request(f"http://127.0.0.1:{variables['HTTP__PORT']}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - our own worker
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def wait_drained(variables: Variables, worker: Process, records: int) -> None:
    """Until both partitions are open and the input is committed."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert worker.process.poll() is None, worker.said.read_text()
        try:
            status, body = ask(variables, "/state", f"Bearer {TOKEN}")
        except OSError:
            status, body = 0, b""
        if status == 200:
            stats = json.loads(body)
            if stats["open"] == 2 and sum(p["next_offset"] for p in stats["partitions"].values()) >= records:
                return
        time.sleep(0.2)
    pytest.fail("the worker did not read its input in time\n" + worker.said.read_text())


def test_worker_restore_and_commands_work_secured_and_show_no_secret(
    secured: Broker, variables: Variables, start: Start, tmp_path: Path
) -> None:
    """Consumer, producer, restore, topics, replay, state, dlq and doctor; then the secrets are looked for in it all."""
    assert secured.security is not None
    left: list[str] = []

    def run(*arguments: object) -> Ran:
        ran = foreclick(*arguments, "--json", **variables)
        left.append(ran.out + ran.err)
        return ran

    assert len(run("topics", "create").json["created"]) >= 4
    log = tmp_path / "clicks.jsonl"
    event = {"event_time_ms": 1_700_000_000_000, "action": "view"}
    log.write_text(
        "".join(json.dumps({"user_id": f"u{n % 8}", **event}) + "\n" for n in range(EVENTS))
        + json.dumps({"user_id": "u1", "event_time_ms": "soon", "action": "view"})
        + "\n"
    )
    assert run("replay", log).json["sent"] == EVENTS + 1

    worker = start(variables, "stream.cli", "worker")
    wait_drained(variables, worker, EVENTS + 1)
    assert run("state", "show", "u3").json["events"] == EVENTS // 8
    assert run("dlq", "list").json["dead_letters"] == 1
    assert run("dlq", "replay").json["replayed"] == 1
    assert run("doctor").code == 0
    pages = [
        ask(variables, path, f"Bearer {TOKEN}") for path in ("/metrics", "/state", "/state/u3", "/readyz")
    ]
    assert [status for status, _ in pages] == [200] * 4
    left += [body.decode() for _, body in pages]
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert any("kafka.Kafka" in command for command in commands)
    left += [" ".join(command) for command in commands]

    worker.process.kill()
    worker.process.wait()
    shutil.rmtree(str(variables["DATA_DIR"]))
    restored = start(variables, "stream.cli", "worker")
    wait_drained(variables, restored, EVENTS + 2)
    assert run("state", "show", "u3").json["events"] == EVENTS // 8
    restored.process.terminate()
    assert restored.process.wait(60) == 0
    assert run("state", "verify").json["sound"]

    left += [each.said.read_text() for each in (worker, restored)]
    left.append((secured.data_dir / "kafka.log").read_text())
    assert '"event": "settings"' in worker.said.read_text()
    for secret in (TOKEN, secured.security.client_password.read_text()):
        assert [text[:200] for text in left if secret in text] == []


def test_only_healthz_answers_without_the_token(variables: Variables, start: Start) -> None:
    """Bound to all interfaces, wrong tokens of every shape included; the command sends the right one."""
    foreclick("topics", "create", **variables)
    guarded = {**variables, "HTTP__HOST": "0.0.0.0"}
    worker = start(guarded, "stream.cli", "worker")
    wait_drained(variables, worker, 0)
    for path in ("/readyz", "/metrics", "/state", "/state/u1", "/nothing-here"):
        for authorization in (
            None,
            "Bearer ",
            f"Bearer {TOKEN}x",
            TOKEN,
            f"Basic {TOKEN}",
            "Bearer \xff\xfe",
        ):
            assert ask(variables, path, authorization)[0] == 401, (path, authorization)
    assert ask(variables, "/healthz") == (200, b'{"alive": true}')
    assert foreclick("state", "stats", "--json", **guarded).json["open"] == 2
    del guarded["HTTP__TOKEN_FILE"]
    assert "FORECLICK_HTTP__TOKEN_FILE" in foreclick("state", "stats", **guarded).error


def test_a_bind_beyond_loopback_without_a_token_ends_the_worker(variables: Variables, start: Start) -> None:
    """In one line with the setting, before anybody can connect."""
    opened = {**variables, "HTTP__HOST": "0.0.0.0"}
    del opened["HTTP__TOKEN_FILE"]
    worker = start(opened, "stream.cli", "worker")
    assert worker.process.wait(60) == 1
    said = worker.said.read_text()
    assert said.startswith("error: FORECLICK_HTTP__HOST is 0.0.0.0")
    assert said.count("\n") == 1
    assert "FORECLICK_HTTP__TOKEN_FILE" in said
