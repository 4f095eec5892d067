"""A real Kafka with SASL_SSL and SCRAM-SHA-512, made by the product's code, and the settings of its clients."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.errors import ForeclickError
from models.registry import untrained
from stream.broker import Broker
from stream.broker.jars import java_command
from stream.broker.server_settings import free_port

TOKEN = "token-that-nobody-guesses"
Variables = dict[str, object]


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A secured broker for the whole session; an address in the environment is not asked for its users."""
    try:
        running = Broker(tmp_path_factory.mktemp("secured"), secure=True, environment={})
        running.start()
    except ForeclickError as error:
        pytest.fail(str(error), pytrace=False)
    with running:
        yield running


@pytest.fixture(scope="session")
def expired(secured: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Another one, of the same authority and user, whose certificate ended two days ago."""
    folder = tmp_path_factory.mktemp("expired")
    assert secured.security is not None
    shutil.copytree(secured.security.folder, folder / "security")
    broker = Broker(folder, environment={})
    assert broker.security is not None
    broker.security.make_certificate(java_command(), "clients.p12", begins="-3d", days=1)
    # The product waits until a broker answers, and nobody gets an answer from this one: it is only launched.
    broker._java.launch(detached=False)
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models"), hidden=16)


@pytest.fixture
def variables(secured: Broker, model: Path, tmp_path: Path) -> Variables:
    """Settings without their prefix: names of this test alone, secrets in files."""
    assert secured.security is not None
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    name = f"s{uuid.uuid4().hex[:8]}"
    return {
        **{
            variable.removeprefix("FORECLICK_"): value
            for variable, value in secured.security.variables(secured.bootstrap_servers).items()
        },
        "TOPICS__PREFIX": f"{name}.",
        "TOPICS__PARTITIONS": 2,
        "APP_ID": name,
        "DATA_DIR": tmp_path / "data",
        "HTTP__PORT": free_port(),
        "HTTP__TOKEN_FILE": token,
        "MODEL": model,
        "LOG_LEVEL": "debug",
    }


@dataclass
class Process:
    """A command in a process of its own, and where its words go."""

    process: subprocess.Popen[bytes]
    said: Path


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ``python -m`` with arguments and settings; all of them are gone after the test."""
    started: list[Process] = []

    def run(variables: Variables, *arguments: str) -> Process:
        said = tmp_path / f"{len(started)}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FORECLICK_")}
        environment |= {f"FORECLICK_{name}": str(value) for name, value in variables.items()}
        with said.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments], env=environment, stdout=sink, stderr=subprocess.STDOUT
            )
        started.append(Process(process, said))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
