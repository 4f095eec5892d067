"""What a Kafka with TLS and passwords needs: a CA of its own, certificates, one user, and the listeners.

    data_dir/security/          readable by its owner only
    ├── ca.p12, ca.pem          the authority; clients trust ca.pem
    ├── clients.p12             the certificate that clients see
    ├── internal.p12            the broker's own, for its talk with itself and the controller: mutual TLS, no password
    ├── trust.p12               the authority as the broker wants it
    ├── keystore.password       opens the .p12 files
    ├── client.password         of the user ``foreclick``, SCRAM-SHA-512
    └── client.env              what clients set: ``set -a; . client.env; set +a``

Made by Java's keytool, which lies beside the java that runs the broker. Passwords reach programs through files, never
through arguments that ``ps`` shows.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Final

from stream.errors import BrokerUnreachable

USER: Final = "foreclick"
VALID_DAYS: Final = 365
# The JVM's quick compiler: each call lives for half a second.
KEYTOOL_JVM: Final = ("-J-XX:TieredStopAtLevel=1", "-J-Xshare:auto")


class Security:
    """The folder ``security`` of a broker's data directory; nothing is made before ``make``."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "security"
        self.ca = self.folder / "ca.pem"
        self.client_password = self.folder / "client.password"
        self.client_env = self.folder / "client.env"
        self._store_password = self.folder / "keystore.password"

    @property
    def made(self) -> bool:
        """Whether the broker of this data directory is a secured one."""
        return self.client_password.exists()

    def make(self, java: str) -> None:
        """Make authority, certificates and passwords, once.

        Raises:
            BrokerUnreachable: there is no keytool beside ``java``, or it failed.
        """
        if self.made:
            return
        shutil.rmtree(self.folder, ignore_errors=True)  # half made by a process that was killed
        self.folder.mkdir(mode=0o700, parents=True)
        write_secret(self._store_password, secrets.token_hex(24))
        self._keytool(
            *(java, "-genkeypair", "ca.p12", "ca", "-dname", "CN=foreclick-broker-ca", *_KEY),
            # OpenSSL's strict rules, which newer Pythons apply, ask an authority for both.
            *("-ext", "bc:critical=ca:true", "-ext", "ku:critical=keyCertSign,cRLSign"),
        )
        self._keytool(java, "-exportcert", "ca.p12", "ca", "-rfc", "-file", "ca.pem")
        self._keytool(java, "-importcert", "trust.p12", "ca", "-noprompt", "-file", "ca.pem")
        self.make_certificate(java, "clients.p12")
        self.make_certificate(java, "internal.p12")
        write_secret(self.client_password, secrets.token_hex(24))  # the last one: now it is made

    def make_certificate(self, java: str, keystore: str, begins: str = "-1H", days: int = VALID_DAYS) -> None:
        """A key and its certificate for loopback, signed by the authority, in a new keystore.

        Args:
            java: the program beside which keytool lies.
            keystore: file in the folder; replaced.
            begins: start of its life as keytool writes it, such as ``-3d``; an hour ago, for clocks that go after.
            days: its length of life.
        """
        (self.folder / keystore).unlink(missing_ok=True)
        self._keytool(java, "-genkeypair", keystore, "broker", "-dname", "CN=localhost", *_KEY)
        self._keytool(java, "-certreq", keystore, "broker", "-file", "broker.csr")
        self._keytool(
            *(java, "-gencert", "ca.p12", "ca", "-infile", "broker.csr", "-outfile", "broker.pem", "-rfc"),
            *("-ext", "san=ip:127.0.0.1,dns:localhost", "-startdate", begins, "-validity", str(days)),
        )
        self._keytool(java, "-importcert", keystore, "ca", "-noprompt", "-file", "ca.pem")
        self._keytool(java, "-importcert", keystore, "broker", "-file", "broker.pem")

    def variables(self, address: str) -> dict[str, str]:
        """What clients set, by the names of their environment."""
        return {
            "FORECLICK_KAFKA__BOOTSTRAP_SERVERS": address,
            "FORECLICK_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
            "FORECLICK_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
            "FORECLICK_KAFKA__SASL_USERNAME": USER,
            "FORECLICK_KAFKA__SASL_PASSWORD_FILE": str(self.client_password),
            "FORECLICK_KAFKA__SSL_CA_LOCATION": str(self.ca),
        }

    def write_client_env(self, address: str) -> None:
        """Keep ``client.env`` with the address of this start."""
        lines = [f"{name}='{value}'\n" for name, value in self.variables(address).items()]
        self.client_env.write_text("".join(lines))

    def format_arguments(self) -> list[str]:
        """What formatting the storage needs besides: the user, in a file that its command line names."""
        file = self.folder / "format.arguments"
        password = self.client_password.read_text()
        write_secret(file, f"--add-scram\nSCRAM-SHA-512=[name={USER},password={password}]\n")
        return [f"@{file}"]

    def forget_format_arguments(self) -> None:
        """The user is in the storage now, salted and hashed."""
        (self.folder / "format.arguments").unlink(missing_ok=True)

    def server_settings(self, host: str, port: int, internal: int, controller: int) -> dict[str, str]:
        """Kafka's settings that make it a secured one; paths are relative to the data directory.

        Clients meet SASL_SSL with SCRAM-SHA-512; broker and controller, which cannot keep their own password where
        they look it up, know each other by certificates.
        """
        password = self._store_password.read_text()
        settings = {
            "listeners": f"CLIENTS://{host}:{port},INTERNAL://{host}:{internal},CONTROLLER://{host}:{controller}",
            "advertised.listeners": f"CLIENTS://{host}:{port},INTERNAL://{host}:{internal}",
            "inter.broker.listener.name": "INTERNAL",
            "listener.security.protocol.map": "CLIENTS:SASL_SSL,INTERNAL:SSL,CONTROLLER:SSL",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.clients.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.clients.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
        }
        keystores = {"clients": "clients.p12", "internal": "internal.p12", "controller": "internal.p12"}
        for listener, keystore in keystores.items():
            prefix = f"listener.name.{listener}.ssl."
            settings |= {
                prefix + "keystore.type": "PKCS12",
                prefix + "keystore.location": f"security/{keystore}",
                prefix + "keystore.password": password,
                prefix + "key.password": password,
                prefix + "truststore.type": "PKCS12",
                prefix + "truststore.location": "security/trust.p12",
                prefix + "truststore.password": password,
                prefix + "client.auth": "none" if listener == "clients" else "required",
            }
        return settings

    def _keytool(self, java: str, what: str, keystore: str, alias: str, *arguments: str) -> None:
        keytool = Path(java).resolve().with_name("keytool")
        if not keytool.exists():
            raise BrokerUnreachable(
                f"No certificates can be made: there is no keytool beside {java}. Install a whole Java 17, or start "
                "the broker without --secure."
            )
        done = subprocess.run(
            [
                *(str(keytool), *KEYTOOL_JVM, what, "-keystore", keystore, "-storetype", "PKCS12"),
                *("-alias", alias, "-storepass:file", self._store_password.name, *arguments),
            ],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().splitlines()
            raise BrokerUnreachable(
                f"keytool {what} failed in {self.folder}: {said[0] if said else 'no reason given'}. Remove that folder "
                "and start again."
            )


_KEY: Final = ("-keyalg", "EC", "-groupname", "secp256r1", "-validity", "3650")


def write_secret(file: Path, text: str) -> None:
    """A file that only its owner can read, from its first byte on."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as sink:
        sink.write(text)
