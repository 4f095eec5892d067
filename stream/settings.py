"""One frozen settings object, parsed once at the edge and passed as an argument.

Every field can be set by an environment variable: the prefix ``FORECLICK_``, ``__`` for nesting
(``FORECLICK_KAFKA__BOOTSTRAP_SERVERS``), and for secrets ``*_FILE`` names a file that holds the value. A variable
with our prefix that no field knows is an error, because a misspelt setting that is silently ignored is worse.
"""

from __future__ import annotations

import difflib
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stream.errors import ConfigurationError
from stream.fraud_rules import read_rules

PREFIX = "FORECLICK_"


def default_data_dir() -> Path:
    """Where state lives unless told otherwise: the user's state folder, never the working directory."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "foreclick"


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kafka(_Group):
    """How to reach the broker. The security fields carry Kafka's own property names (dots become underscores)."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port, comma separated")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: Path | None = None
    ssl_certificate_location: Path | None = None
    ssl_key_location: Path | None = None
    ssl_key_password: SecretStr | None = None
    session_timeout_ms: int = Field(
        8_000, ge=3_000, description="a paused worker loses its partitions after this"
    )
    rebalance_timeout_ms: int = Field(30_000, ge=5_000, description="time for an open transaction to end")
    transaction_timeout_ms: int = Field(
        30_000, ge=5_000, description="the broker aborts an abandoned transaction"
    )
    request_timeout_ms: int = Field(20_000, ge=1_000)
    max_partition_fetch_bytes: int = Field(1 << 20, description="larger buffers cost memory, not time")

    def check_security(self) -> None:
        """Look at the security fields together, and at the files that they name.

        Raises:
            ConfigurationError: user or password are missing, or a file cannot be used; the setting is named.
        """
        if self.security_protocol.startswith("SASL"):
            for name, value in (("USERNAME", self.sasl_username), ("PASSWORD_FILE", self.sasl_password)):
                if value is None:
                    raise ConfigurationError(
                        f"{PREFIX}KAFKA__SECURITY_PROTOCOL is {self.security_protocol}, and {PREFIX}KAFKA__SASL_{name} "
                        "is not set. Set it."
                    )
        if self.security_protocol.endswith("SSL"):
            self.ssl_context()

    def ssl_context(self) -> ssl.SSLContext:
        """Verifies the broker's certificate and name; shows our own certificate when there is one.

        Raises:
            ConfigurationError: a file that a setting names cannot be used.
        """
        authority, certificate = self.ssl_ca_location, self.ssl_certificate_location
        try:
            context = ssl.create_default_context(cafile=str(authority) if authority else None)
        except OSError as error:
            raise ConfigurationError(
                f"{PREFIX}KAFKA__SSL_CA_LOCATION is {authority}, which is no file of PEM certificates that can be read "
                f"({error.strerror or error}). Correct it."
            ) from None
        if certificate:
            # Never None: OpenSSL would ask at the terminal.
            password = self.ssl_key_password.get_secret_value() if self.ssl_key_password else ""
            try:
                context.load_cert_chain(certificate, self.ssl_key_location, password)
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"The certificate {certificate} and its key {self.ssl_key_location or certificate} cannot be used "
                    f"({getattr(error, 'strerror', None) or error}). Check {PREFIX}KAFKA__SSL_CERTIFICATE_LOCATION, "
                    f"{PREFIX}KAFKA__SSL_KEY_LOCATION and {PREFIX}KAFKA__SSL_KEY_PASSWORD_FILE."
                ) from None
        return context

    def aiokafka(self) -> dict[str, Any]:
        """Arguments of every aiokafka client."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
            "request_timeout_ms": self.request_timeout_ms,
        }
        if self.security_protocol.startswith("SASL"):
            arguments["sasl_mechanism"] = self.sasl_mechanism
            arguments["sasl_plain_username"] = self.sasl_username
            arguments["sasl_plain_password"] = (
                self.sasl_password.get_secret_value() if self.sasl_password else None
            )
        if self.security_protocol.endswith("SSL"):
            arguments["ssl_context"] = self.ssl_context()
        return arguments

    def librdkafka(self) -> dict[str, Any]:
        """Arguments of every confluent-kafka client (administration, replay, readers)."""
        named = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism if self.security_protocol.startswith("SASL") else None,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            "ssl.ca.location": str(self.ssl_ca_location) if self.ssl_ca_location else None,
            "ssl.certificate.location": str(self.ssl_certificate_location)
            if self.ssl_certificate_location
            else None,
            "ssl.key.location": str(self.ssl_key_location) if self.ssl_key_location else None,
            "ssl.key.password": self.ssl_key_password.get_secret_value() if self.ssl_key_password else None,
        }
        return {name: value for name, value in named.items() if value is not None}


class Topics(_Group):
    """Names of the topics; ``prefix`` goes before each of them."""

    prefix: str = ""
    clicks: str = "clicks"
    predictions: str = "predictions"
    dead_letters: str = "clicks.dlq"
    alerts_fraud: str = "alerts.fraud"
    alerts_churn: str = "alerts.churn"
    alerts_audit: str = "alerts.audit"
    user_vectors: str = "user_vectors"
    labels: str = "labels"
    partitions: int = Field(8, ge=1, le=1024, description="of topics that `topics create` makes")
    replication_factor: int = Field(1, ge=1, description="3 in production; doctor says so")


class Churn(_Group):
    """When a silence becomes an alert; see stream/silence.py."""

    alerts: bool = Field(True, description="off: nobody is missed, and an event ends the wait for its user")
    horizon_s: int | None = Field(
        None, ge=1, description="coming back later is churn; the model's own when not set"
    )
    threshold: float | None = Field(
        None, gt=0, lt=1, description="of the chance to stay away; the manifest's when not set"
    )
    idle_s: int = Field(
        60, ge=1, description="a partition without records for so long follows the others' event time"
    )


class Groups(_Group):
    """The second stage: what several users have in common, and the detectors of coordination over it."""

    enabled: bool = Field(True, description="clicks write group records, and a second stage reads them")
    kinds: str = Field(
        "shop,item,user",
        description="types of groups, comma separated; device costs a record and a row an order",
    )
    partitions: int = Field(
        2, ge=1, le=1024, description="each takes part in most transactions of clicks: few cost less"
    )
    silenced: str = Field(
        "", description="kinds of alerts that are not looked for, comma separated: click_farm,device_farm"
    )
    wait_ms: float = Field(
        1000.0, ge=0, description="a transaction costs the broker the same whatever is in it; alerts may wait"
    )
    quiet_s: float = Field(
        10.0, ge=1, description="a source partition without news for so long is not waited for"
    )
    cool_down_s: int = Field(
        604_800, ge=0, description="event time in which a subject is said once, unless it is wider"
    )

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: str) -> str:
        unknown = set(filter(None, kinds.split(","))) - {"shop", "item", "device", "user"}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: there are shop, item, device and user")
        return kinds


class Labels(_Group):
    """Feedback: labels joined with what was flagged, and the audit sample from which recall is known."""

    enabled: bool = Field(
        True, description="off: nobody reads labels, and no stage tells of orders and alerts"
    )
    partitions: int = Field(
        2, ge=1, le=1024, description="of the topic of labels when `topics create` makes it"
    )
    audit_rate: float = Field(
        0.01, ge=0, le=1, description="share of unflagged orders and users that go to the audit"
    )
    calibrate_from: int = Field(
        200, ge=1, description="labels of what a detector flagged, before its alerts have a probability"
    )
    wait_ms: float = Field(
        1000.0, ge=0, description="a fuller transaction; labels come days after what they are about"
    )


class Fraud(_Group):
    """What of one user is told to the second stage, and when it becomes an alert; see stream/user_watch.py."""

    threshold: float = Field(0.99, gt=0, lt=1, description="score from which on a user is flagged")
    anomaly: float = Field(
        0.995,
        gt=0,
        le=1,
        description="of an event, from which on it is odd: one in 200 where the model fits",
    )
    tempo_s: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="16 events of a session within so long are told: twice as long as 200 a minute",
    )
    rules: Path | None = Field(
        None, description="the analyst's file of rules, TOML; the one that is shipped when not set"
    )

    def check_rules(self) -> None:
        """Read the file of rules once.

        Raises:
            ConfigurationError: it cannot be read, or names an unknown rule or an impossible limit.
        """
        read_rules(self.rules)


class Http(_Group):
    """Where operators look: /metrics, /healthz, /readyz and the state of one user."""

    host: str = "127.0.0.1"
    port: int = Field(6066, ge=0, le=65535, description="0 takes a free port")
    token: SecretStr | None = Field(None, min_length=8, description="needed for a bind outside loopback")


class Settings(BaseSettings):
    """Everything that can be configured, with the reason for each default."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    app_id: str = Field("foreclick", description="consumer group and the prefix of internal topics")
    kafka: Kafka = Field(default_factory=lambda: Kafka.model_validate({}))
    topics: Topics = Field(default_factory=lambda: Topics.model_validate({}))
    http: Http = Field(default_factory=lambda: Http.model_validate({}))
    churn: Churn = Field(default_factory=lambda: Churn.model_validate({}))
    groups: Groups = Field(default_factory=lambda: Groups.model_validate({}))
    labels: Labels = Field(default_factory=lambda: Labels.model_validate({}))
    fraud: Fraud = Field(default_factory=lambda: Fraud.model_validate({}))
    data_dir: Path = Field(default_factory=default_data_dir)
    model: Path | None = Field(
        None, description="model folder until one is activated; the bundled one when not set"
    )
    model_root: Path | None = Field(
        None, description="model store in which activated versions are looked up; as `models activate` saw it"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    input_format: str = Field("auto", description="of records in the input topic; auto recognises the shape")

    max_batch_size: int = Field(
        4096, ge=1, le=65536, description="events in a micro-batch; larger is not faster"
    )
    max_batch_wait_ms: float = Field(
        150.0, ge=0, description="longest wait for partitions that could still join a round of the model"
    )
    partition_wait_ms: float = Field(
        5.0, ge=0, description="a fuller transaction costs the broker less than two"
    )
    queue_size: int = Field(
        8192, ge=1, description="events waiting in a partition before its reading is paused"
    )
    predictions: Literal["every", "last"] = Field(
        "every", description="one an event, or the last of a user in a batch"
    )
    user_vectors: Literal["off", "predictions", "topic"] = Field(
        "off", description="in each prediction, or a user's newest one on a compacted topic"
    )

    session_gap_s: int = Field(1800, ge=1, description="silence that ends a session")
    late_limit_s: int = Field(
        1800, ge=0, description="an event older than this against its user's last is rejected"
    )
    future_limit_s: int = Field(300, ge=0, description="an event further ahead of the clock is rejected")

    on_position_mismatch: Literal["open", "exit"] = Field(
        "open", description="state stays exact; outputs may repeat"
    )
    on_data_loss: Literal["exit", "skip"] = Field(
        "exit", description="when retention has passed our position"
    )
    commit_max_age_s: int = Field(
        60, ge=1, description="not ready when there is lag and no commit for so long, or no broker answers"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="text on a terminal, json elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load_settings reads the environment itself: pydantic-settings would let misspelt names pass.
        return (init_settings,)

    def source_of(self, topic: str) -> str:
        """The ``ce_source`` of what is made of a topic: a URI reference."""
        return f"/{self.app_id}/{topic}"

    @property
    def clicks_topic(self) -> str:
        return self.topics.prefix + self.topics.clicks

    @property
    def predictions_topic(self) -> str:
        return self.topics.prefix + self.topics.predictions

    @property
    def dead_letters_topic(self) -> str:
        return self.topics.prefix + self.topics.dead_letters

    @property
    def alerts_fraud_topic(self) -> str:
        return self.topics.prefix + self.topics.alerts_fraud

    @property
    def alerts_churn_topic(self) -> str:
        return self.topics.prefix + self.topics.alerts_churn

    @property
    def user_vectors_topic(self) -> str:
        return self.topics.prefix + self.topics.user_vectors

    @property
    def alerts_audit_topic(self) -> str:
        return self.topics.prefix + self.topics.alerts_audit

    @property
    def labels_topic(self) -> str:
        return self.topics.prefix + self.topics.labels

    @property
    def changelog_topic(self) -> str:
        return f"{self.topics.prefix}{self.app_id}-state-changelog"

    @property
    def groups_topic(self) -> str:
        return f"{self.topics.prefix}{self.app_id}-groups"

    @property
    def groups_changelog_topic(self) -> str:
        return f"{self.topics.prefix}{self.app_id}-groups-changelog"

    @property
    def groups_group(self) -> str:
        """The consumer group of the second stage."""
        return f"{self.app_id}-groups"

    @property
    def labels_changelog_topic(self) -> str:
        return f"{self.topics.prefix}{self.app_id}-labels-changelog"

    @property
    def labels_group(self) -> str:
        """The consumer group of the stage of labels."""
        return f"{self.app_id}-labels"

    @property
    def control_topic(self) -> str:
        return f"{self.topics.prefix}{self.app_id}.control"

    def described(self) -> dict[str, Any]:
        """The settings as plain values, secrets masked, for the line printed at start."""
        return self.model_dump(mode="json")


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the environment once.

    Args:
        environ: the process' own when None.
        overrides: flags of the command line, which win (``kafka__bootstrap_servers=...``); None means not given.

    Raises:
        ConfigurationError: an unknown variable of our prefix, or a value of the wrong type, named.
    """
    environ = os.environ if environ is None else environ
    known = dict(_variables(Settings, PREFIX))
    values: dict[str, Any] = {}
    for name, value in environ.items():
        upper = name.upper()
        if not upper.startswith(PREFIX):
            continue
        secret = upper.removesuffix("_FILE")
        if upper in known:
            if known[upper] and f"{name}_FILE" in environ:
                raise ConfigurationError(f"{name} and {name}_FILE are both set. Unset one of them.")
            _place(values, upper, value)
        elif secret != upper and known.get(secret):
            _place(values, secret, _secret_file(name, value))
        else:
            close = difflib.get_close_matches(upper, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigurationError(
                f"Unknown setting {name} in the environment.{hint} `foreclick worker --settings` lists all."
            )
    for name, value in overrides.items():
        if value is not None:
            _place(values, PREFIX + name.upper(), value)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = "__".join(str(part) for part in first["loc"]).upper()
        shown = "(hidden)" if known.get(PREFIX + place) else repr(first.get("input"))
        message = f"Setting {PREFIX}{place} = {shown}: {first['msg']}. Correct it and start again."
        raise ConfigurationError(message) from None
    settings.kafka.check_security()
    settings.fraud.check_rules()
    return settings


def _variables(model: type[BaseModel], prefix: str) -> list[tuple[str, bool]]:
    """Every environment variable that the model knows, and whether it holds a secret."""
    found: list[tuple[str, bool]] = []
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _variables(field.annotation, variable + "__")
        else:
            found.append((variable, "SecretStr" in str(field.annotation)))
    return found


def _secret_file(variable: str, path: str) -> str:
    try:
        secret = Path(path).read_text().strip()
    except (OSError, UnicodeError) as error:
        # Not with the error's own words when it is one of decoding: they quote what they could not decode.
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(
            f"{variable} names {path}, which cannot be read: {reason}. Correct the path or the file."
        ) from None
    if not secret:
        raise ConfigurationError(f"{variable} names {path}, which is empty. Write the secret into it.")
    return secret


def _place(values: dict[str, Any], variable: str, value: Any) -> None:
    """Put the value of ``FORECLICK_GROUP__NAME`` where Settings expects it."""
    *groups, last = variable.removeprefix(PREFIX).lower().split("__")
    for group in groups:
        values = values.setdefault(group, {})
    values[last] = value
