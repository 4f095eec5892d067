"""Java, and the files of Apache Kafka: fetched once by Maven into the user's cache folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from stream.broker.client import ADDRESS_VARIABLE
from stream.broker.server_settings import KAFKA_VERSION
from stream.errors import BrokerUnreachable

POM: Final = Path(__file__).with_name("pom.xml")
JAVA_NEEDED: Final = 17  # Kafka 4's servers run on nothing older
FETCH_TIMEOUT_S: Final = 900
FETCH_GOAL: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
OTHER_WAYS: Final = f"start Docker, or set {ADDRESS_VARIABLE} to the address of a broker that runs"


def jars_dir() -> Path:
    """Where the files of Kafka are, or will be."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "foreclick" / f"kafka-{KAFKA_VERSION}"


def java_command() -> str:
    """The java program of ``JAVA_HOME``, else of the PATH.

    Raises:
        BrokerUnreachable: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(Path(home) / "bin" / "java") if home else shutil.which("java")
    mend = f"Install Java {JAVA_NEEDED} or newer and Maven, {OTHER_WAYS}."
    if java is None:
        where = f"in JAVA_HOME={home}" if home else "on the PATH"
        raise BrokerUnreachable(f"No broker can be started here: there is no java {where}. {mend}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < JAVA_NEEDED:
        found = version[1] if version else said.strip()
        raise BrokerUnreachable(f"No broker can be started here: {java} is Java {found}. {mend}")
    return java


def fetch_jars(say: Callable[[str], None]) -> Path:
    """The folder with Kafka's files; fetched when it is missing, and then whole or not at all.

    Args:
        say: told what is going on, a line at a time; only when something has to be fetched.

    Raises:
        BrokerUnreachable: Maven is missing, or could not fetch them.
    """
    target = jars_dir()
    if target.is_dir():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerUnreachable(
            f"No broker can be started here: mvn was not found, and Apache Kafka {KAFKA_VERSION} has not been "
            f"fetched yet. Install Maven, {OTHER_WAYS}."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"fetching Apache Kafka {KAFKA_VERSION} with Maven, about 45 MB, once")
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=target.parent) as workshop:
        fetched = Path(workshop) / "jars"
        _copy_dependencies(maven, fetched, Path(workshop), say)
        try:
            fetched.rename(target)
        except OSError:
            # Another process fetched the same files meanwhile; anything else is an error.
            if not target.is_dir():
                raise
    say(f"fetched in {time.monotonic() - started_s:.1f} s into {target}")
    return target


def _copy_dependencies(maven: str, fetched: Path, workshop: Path, say: Callable[[str], None]) -> None:
    command = [maven, "--batch-mode", "--quiet", "-Dstyle.color=never", "--file", str(POM), FETCH_GOAL]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={fetched}"]
    output = workshop / "maven.log"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, cwd=workshop
        )
        try:
            for waited_s in range(5, FETCH_TIMEOUT_S + 1, 5):
                try:
                    if process.wait(timeout=5) == 0:
                        return
                    break
                except subprocess.TimeoutExpired:
                    say(f"still fetching ({waited_s} s)")
        finally:
            process.kill()
            process.wait()
    said = [line for line in output.read_text(errors="replace").splitlines() if "ERROR" in line]
    raise BrokerUnreachable(
        f"Maven could not fetch Apache Kafka {KAFKA_VERSION}: {said[0] if said else 'it gave no reason'}. Check the "
        f"network and Maven's settings.xml (mirror, proxy), {OTHER_WAYS}."
    )
