"""Why a broker that is there does not talk with us: password, certificate, or two who speak different protocols.

librdkafka keeps trying and says little: a certificate that "could not be verified" may have expired, or be of an
authority that is not trusted, and a plain client that meets TLS hears nothing at all. So after a failure, and only
then, the address is asked once more by a TLS handshake of our own.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError

PROBE_TIMEOUT_S: Final = 3.0
PROTOCOL: Final = "FORECLICK_KAFKA__SECURITY_PROTOCOL"
AUTHORITY: Final = "FORECLICK_KAFKA__SSL_CA_LOCATION"

# OpenSSL's numbers of what is wrong with a certificate (x509_vfy.h).
NOT_YET_VALID, EXPIRED, OTHER_NAME, OTHER_ADDRESS = 9, 10, 62, 64


def why_refused(client: Mapping[str, Any], seen: Sequence[KafkaError]) -> str | None:
    """A sentence with the setting to look at, or None when nothing points to security.

    Args:
        client: librdkafka's settings by name.
        seen: what librdkafka said, in order.
    """
    protocol = str(client.get("security.protocol", "PLAINTEXT")).upper()
    address = str(client["bootstrap.servers"])
    for error in seen:
        if error.code() == KafkaError._AUTHENTICATION:
            return (
                f"The broker at {address} refuses user {client.get('sasl.username')} ({_bare(error)}). Check "
                "FORECLICK_KAFKA__SASL_USERNAME, FORECLICK_KAFKA__SASL_PASSWORD_FILE and "
                f"FORECLICK_KAFKA__SASL_MECHANISM (now {client.get('sasl.mechanism')})."
            )
    host, _, port = address.partition(",")[0].strip().rpartition(":")
    host = host.strip("[]")
    if protocol.endswith("SSL"):
        return _of_tls(client, protocol, host, port)
    if _handshake(host, port, _trusting()) is True:
        return (
            f"The broker at {address} speaks TLS, and {PROTOCOL} is {protocol}. Set it to SASL_SSL (user and password) "
            f"or SSL, and {AUTHORITY} to the certificate of its authority."
        )
    return None


def _of_tls(client: Mapping[str, Any], protocol: str, host: str, port: str) -> str | None:
    """What a client with TLS should look at; None when nobody listens, or nothing is wrong with TLS."""
    authority = client.get("ssl.ca.location")
    try:
        verifying = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as problem:
        return f"{AUTHORITY} is {authority}, which is no file of PEM certificates: {problem}. Correct it."
    answer = _handshake(host, port, verifying)
    if isinstance(answer, ssl.SSLCertVerificationError):
        return _of_certificate(answer, host, port, authority)
    if isinstance(answer, ssl.SSLError | ConnectionError | TimeoutError) and not isinstance(
        answer, ConnectionRefusedError
    ):
        return (
            f"What listens at {host}:{port} does not answer TLS ({_words(answer)}), and {PROTOCOL} is {protocol}. Name "
            "the port of a listener with TLS in FORECLICK_KAFKA__BOOTSTRAP_SERVERS, or set PLAINTEXT or SASL_PLAINTEXT."
        )
    if answer is True and protocol == "SSL":
        return (
            f"The broker at {host}:{port} speaks TLS and then ends the connection. It wants a user (set {PROTOCOL} to "
            "SASL_SSL, with FORECLICK_KAFKA__SASL_USERNAME and FORECLICK_KAFKA__SASL_PASSWORD_FILE) or another "
            "FORECLICK_KAFKA__SSL_CERTIFICATE_LOCATION."
        )
    return None


def _of_certificate(
    problem: ssl.SSLCertVerificationError, host: str, port: str, authority: str | None
) -> str:
    code, said = problem.verify_code, problem.verify_message
    if code == EXPIRED:
        return (
            f"The certificate of the broker at {host}:{port} (or of its authority) has expired ({said}). Renew it in "
            f"the broker's keystore; if its authority is renewed as well, name that in {AUTHORITY} (now "
            f"{authority or 'not set: the authorities of this system'})."
        )
    if code == NOT_YET_VALID:
        return f"The certificate of the broker at {host}:{port} is not valid yet ({said}). Set this machine's clock."
    if code in {OTHER_NAME, OTHER_ADDRESS}:
        return (
            f"The certificate of the broker at {host}:{port} is not for that host ({said}). Use a name that stands in "
            "it in FORECLICK_KAFKA__BOOTSTRAP_SERVERS, and in the broker's advertised.listeners."
        )
    return (
        f"The certificate of the broker at {host}:{port} is of an authority that is not trusted here ({said}). Set "
        f"{AUTHORITY} (now {authority or 'not set: the authorities of this system'}) to the PEM file of its authority."
    )


def _trusting() -> ssl.SSLContext:
    """Whoever answers: it is asked whether it speaks TLS, and told nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _handshake(host: str, port: str, context: ssl.SSLContext) -> bool | OSError:
    """True after a handshake, else what kept it from being made."""
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S) as plain:
            context.wrap_socket(plain, server_hostname=host).close()
    except OSError as problem:
        return problem
    except ValueError:
        return False  # an address without a port: librdkafka's own words say so
    return True


def _bare(error: KafkaError) -> str:
    """What librdkafka says, without the address before and the state after them."""
    return error.str().partition(": ")[2].partition(" (after")[0]


def _words(problem: OSError) -> str:
    return problem.strerror or str(problem) or type(problem).__name__
