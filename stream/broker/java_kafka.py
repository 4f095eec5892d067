"""One Kafka broker in one data directory, as a Java process of its own.

    data_dir/
    ├── server.properties   written at each start; the port in it is taken again at the next one
    ├── kafka-data/         Kafka's own
    ├── kafka.log           what the broker says (or another file)
    ├── security/           certificates and passwords, when it is a secured one (secured.py)
    └── broker.pid          the process, while it runs; also after it was killed

Whether the process of the pid file is ours is asked of the process itself, as numbers are given out again.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import psutil

from stream.broker.jars import fetch_jars, java_command
from stream.broker.secured import Security, write_secret
from stream.broker.server_settings import LOOPBACK, free_port, is_taken, refuse_taken, server_settings
from stream.errors import BrokerUnreachable, ConfigurationError, StoreError
from stream.settings import load_settings

# The JVM's second compiler pays off in servers that run for days. Here it only takes the processor from the events:
# start 4 s of CPU time instead of 9, a thousand transactions 18 s instead of 32, two million records 5 s instead of 9.
# The serial collector has no threads that compete for the cores: a tenth less CPU time a record, 130 MiB less memory.
JVM: Final = (
    "-Xms256m",
    "-Xmx1g",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
)
STOP_TIMEOUT_S: Final = 30.0
LOG_CONFIGURATION: Final = Path(__file__).with_name("log4j2.xml")


class JavaKafka:
    """Starts, stops and kills the broker of a data directory; finds one that an earlier process started.

    Args:
        data_dir: what the broker keeps; one broker at a time.
        port: where clients connect; None takes the port of the last start, else a free one.
        log: file for what the broker says; ``data_dir/kafka.log`` when None.
        say: told what takes long, a line at a time.
        secure: SASL_SSL with SCRAM-SHA-512; a data directory that once was secured stays so.
    """

    source: Final = "java"

    def __init__(
        self,
        data_dir: Path,
        port: int | None,
        log: Path | None,
        say: Callable[[str], None],
        secure: bool = False,
    ) -> None:
        # Absolute, because the broker runs in its data directory and is known by the path on its command
        # line.
        self.data_dir = data_dir.absolute()
        self.log = (log or self.data_dir / "kafka.log").absolute()
        self.security = Security(self.data_dir)
        self._secure = secure
        self._port = port
        self._say = say
        self._properties = self.data_dir / "server.properties"
        self._pid_file = self.data_dir / "broker.pid"
        self._child: subprocess.Popen[bytes] | None = None
        self._lifeline: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The broker's process, or None when it does not run."""
        try:
            pid = int(self._pid_file.read_text())
            command = psutil.Process(pid).cmdline()
        except (OSError, ValueError, psutil.Error):
            return None
        return pid if "kafka.Kafka" in command and str(self._properties) in command else None

    @property
    def address(self) -> str | None:
        """host:port that clients connect to, known since the first start."""
        port = _client_port(self._last_ports())
        return f"{LOOPBACK}:{port}" if port else None

    @property
    def client(self) -> dict[str, Any]:
        """What a client of this broker sets, by librdkafka's names."""
        if self.security.made:
            return load_settings(self.security.variables(str(self.address))).kafka.librdkafka()
        return {"bootstrap.servers": self.address}

    def launch(self, detached: bool) -> None:
        """Start the process and return at once; it may still die, and answers some seconds later.

        Args:
            detached: whether the broker outlives this process. If not, it dies with it, however that ends.

        Raises:
            BrokerUnreachable: Java or Maven is missing, or the data directory cannot be formatted.
            ConfigurationError: it shall be secured and was formatted as one that is not.
            PortTaken: the port that was asked for is in use.
            StoreError: the log cannot be written.
        """
        java = java_command()
        classpath = f"{fetch_jars(self._say)}/*"
        if self._secure and not self.security.made:
            if (self.data_dir / "kafka-data").exists():
                raise ConfigurationError(
                    f"The broker of {self.data_dir} was made without users and certificates, and stays so. Name "
                    "another data directory: foreclick broker start --secure --data-dir DIR"
                )
            self.security.make(java)
        self._write_properties()
        with self._open_log() as sink:
            self._format(java, classpath)
            # A session of its own: a Ctrl-C at the terminal is for the program that uses the broker, which
            # then still needs it to end well.
            self._child = subprocess.Popen(
                [
                    java,
                    *JVM,
                    f"-Dlog4j2.configurationFile={LOG_CONFIGURATION}",
                    *("-cp", classpath, "kafka.Kafka", str(self._properties)),
                ],
                cwd=self.data_dir,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if not detached:
            self._lifeline = _kill_with_us(self._child.pid)
        self._pid_file.write_text(f"{self._child.pid}\n")
        self._port = _client_port(self._last_ports())

    def last_words(self) -> str | None:
        """Why the broker died, from the end of its log; None while it lives."""
        if self._child is None or self._child.poll() is None:
            return None
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()[-40:]]
        telling = [line for line in lines if " ERROR " in line or " FATAL " in line or "Exception" in line]
        return f"exit code {self._child.returncode}; " + " | ".join((telling or lines)[-4:])

    def stop(self) -> None:
        """End the broker in order, with a deadline; without one it would keep a terminal waiting."""
        pid = self.pid
        if pid is not None:
            self._end(pid, psutil.Process.terminate, STOP_TIMEOUT_S)
        self._pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL, as a lost machine would end it. The data stays as it was that moment."""
        pid = self.pid
        if pid is not None:
            self._end(pid, psutil.Process.kill, STOP_TIMEOUT_S)

    def _end(self, pid: int, signal: Callable[[psutil.Process], None], timeout_s: float) -> None:
        # The lifeline goes first: it knows the broker by number only.
        if self._lifeline is not None and self._lifeline.stdin is not None:
            self._lifeline.kill()
            self._lifeline.wait()
            self._lifeline.stdin.close()
            self._lifeline = None
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            signal(process)
            if not self._ended(process, timeout_s):
                self._say(f"the broker did not end within {timeout_s:.0f} s and is killed")
                process.kill()
                self._ended(process, timeout_s)

    def _ended(self, process: psutil.Process, timeout_s: float) -> bool:
        try:
            if self._child is not None and self._child.pid == process.pid:
                self._child.wait(timeout_s)
            else:
                process.wait(timeout_s)
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            return False
        return True

    def _last_ports(self) -> dict[str, int]:
        """Port by listener name, from the settings of the last start."""
        try:
            lines = self._properties.read_text().splitlines()
        except OSError:
            return {}
        listeners = next((line.partition("=")[2] for line in lines if line.startswith("listeners=")), "")
        return {
            name: int(address.rpartition(":")[2])
            for name, _, address in (
                listener.partition("://") for listener in listeners.split(",") if listener
            )
        }

    def _open_log(self) -> BinaryIO:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            return self.log.open("ab")
        except OSError as problem:
            raise StoreError(f"The broker's log {self.log} cannot be written: {problem}.") from problem

    def _write_properties(self) -> None:
        last = self._last_ports()
        if self._port is not None:
            refuse_taken(self._port)
        port = self._port or _if_free(_client_port(last)) or free_port()
        controller = _if_free(last.get("CONTROLLER")) or free_port(besides=[port])
        settings = server_settings(
            listeners=f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller}",
            advertised=f"{LOOPBACK}:{port}",
            controller=f"{LOOPBACK}:{controller}",
            log_dir="kafka-data",  # relative: Kafka takes a comma in a path for the end of it
        )
        if self.security.made:
            internal = _if_free(last.get("INTERNAL")) or free_port(besides=[port, controller])
            settings |= self.security.server_settings(LOOPBACK, port, internal, controller)
            self.security.write_client_env(f"{LOOPBACK}:{port}")
        # It holds the password of the keystores.
        write_secret(self._properties, "".join(f"{name}={value}\n" for name, value in settings.items()))

    def _format(self, java: str, classpath: str) -> None:
        storage = self.data_dir / "kafka-data"
        if (storage / "meta.properties").exists():
            return
        # What an interrupted formatting left behind would be taken for a foreign directory.
        shutil.rmtree(storage, ignore_errors=True)
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        done = subprocess.run(
            [
                *(java, *JVM, "-cp", classpath, "kafka.tools.StorageTool", "format"),
                *(f"--cluster-id={cluster_id}", "--config", str(self._properties)),
                *(self.security.format_arguments() if self.security.made else ()),
            ],
            cwd=self.data_dir,
            capture_output=True,
            text=True,
            check=False,
        )
        self.security.forget_format_arguments()
        if done.returncode != 0:
            shutil.rmtree(storage, ignore_errors=True)
            said = (done.stderr or done.stdout).strip().splitlines()
            raise BrokerUnreachable(
                f"Kafka could not format {storage}: {said[-1] if said else 'no reason given'}. Name another data "
                f"directory: foreclick broker start --data-dir DIR"
            )


def _client_port(ports: dict[str, int]) -> int | None:
    return ports.get("CLIENTS") or ports.get("PLAINTEXT")


def _if_free(port: int | None) -> int | None:
    return port if port is not None and not is_taken(port) else None


def _kill_with_us(pid: int) -> subprocess.Popen[bytes]:
    """A shell that kills ``pid`` as soon as this process is gone, also by SIGKILL.

    It reads from a pipe whose other end only we hold. Linux's parent-death signal would fire when the
    starting *thread* ends, and other systems have none.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -KILL "$0"', str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
