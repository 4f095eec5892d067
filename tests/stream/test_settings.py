"""Settings: parsed once, misspelt ones are errors, secrets stay hidden."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stream.errors import ConfigurationError
from stream.settings import PREFIX, Settings, _variables, load_settings
from tests.command_line import foreclick


def test_nested_variables_and_flags_reach_their_fields() -> None:
    """A flag of the command line wins over the environment; None means that it was not given."""
    environment = {
        "FORECLICK_KAFKA__BOOTSTRAP_SERVERS": "a:1",
        "FORECLICK_MAX_BATCH_SIZE": "7",
        "PATH": "/bin",
    }
    settings = load_settings(environment, http__port=0, data_dir=None, max_batch_size=9)
    assert settings.kafka.bootstrap_servers == "a:1"
    assert settings.max_batch_size == 9
    assert settings.http.port == 0


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FORECLICK_KAFKA__BOOTSTRAP_SERVER", "x", "Did you mean FORECLICK_KAFKA__BOOTSTRAP_SERVERS?"),
        ("FORECLICK_MAX_BATCH_SIZE", "many", "FORECLICK_MAX_BATCH_SIZE = 'many'"),
        ("FORECLICK_ON_DATA_LOSS", "ignore", "FORECLICK_ON_DATA_LOSS = 'ignore'"),
        ("FORECLICK_HTTP__PORT", "70000", "FORECLICK_HTTP__PORT"),
        ("FORECLICK_KAFKA__SASL_PASSWORD_FILE", "/nowhere/pw", "/nowhere/pw, which cannot be read"),
        ("FORECLICK_FRAUD__RULES", "/nowhere/rules.toml", "with --rules or FORECLICK_FRAUD__RULES"),
        ("FORECLICK_DATA_DIR_FILE", "/tmp/x", "Unknown setting FORECLICK_DATA_DIR_FILE"),
    ],
)
def test_a_wrong_variable_is_named_with_what_to_do(variable: str, value: str, said: str) -> None:
    """A setting that is silently ignored costs more than one that stops the start."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings({variable: value})
    assert said in str(caught.value)


def test_every_variable_is_listed_where_an_unknown_one_sends_to() -> None:
    """What a message names must be there: each setting, a secret as its file, with its default and reason."""
    with pytest.raises(ConfigurationError, match="`foreclick worker --settings` lists all"):
        load_settings({"FORECLICK_QQQQQQQQ": "1"})
    ran = foreclick("worker", "--settings")
    listed = {line.split()[0] for line in ran.out.splitlines()}
    assert ran.code == 0
    assert listed == {name + "_FILE" * secret for name, secret in _variables(Settings, PREFIX)}
    assert re.search(r"^FORECLICK_ON_DATA_LOSS +exit +when retention has passed", ran.out, re.MULTILINE)


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    """Neither the line at start nor an error holds them."""
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    environment = {
        "FORECLICK_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "FORECLICK_KAFKA__SASL_USERNAME": "reader",
        "FORECLICK_KAFKA__SASL_PASSWORD_FILE": str(secret),
    }
    settings = load_settings(environment)
    assert settings.kafka.librdkafka()["sasl.password"] == "hunter2"
    assert settings.kafka.aiokafka()["sasl_plain_password"] == "hunter2"
    assert "hunter2" not in str(settings.described())
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, "SASL_USERNAME is not set"),
        (
            {"KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA__SASL_USERNAME": "a"},
            "SASL_PASSWORD_FILE is not set",
        ),
        (
            {"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__SSL_CA_LOCATION": "/nowhere/ca"},
            "SSL_CA_LOCATION is /nowhere/ca",
        ),
        (
            {"KAFKA__SECURITY_PROTOCOL": "SSL", "KAFKA__SSL_CERTIFICATE_LOCATION": "/nowhere/pem"},
            "SSL_KEY_PASSWORD_FILE",
        ),
        ({"HTTP__TOKEN": ""}, "FORECLICK_HTTP__TOKEN = (hidden)"),
        ({"HTTP__TOKEN": "short-x"}, "FORECLICK_HTTP__TOKEN = (hidden)"),
        ({"HTTP__TOKEN": "long-enough", "HTTP__TOKEN_FILE": "/nowhere/t"}, "are both set"),
    ],
)
def test_security_settings_that_contradict_each_other_are_named(variables: dict[str, str], said: str) -> None:
    """Before anything is connected, and without the value of a secret."""
    with pytest.raises(ConfigurationError) as refused:
        load_settings({f"FORECLICK_{name}": value for name, value in variables.items()})
    assert said in str(refused.value)
    assert "short-x" not in str(refused.value)


@pytest.mark.parametrize(("content", "said"), [(b" \n", "which is empty"), (b"pass\xff", "it is not UTF-8")])
def test_a_secret_file_without_a_secret_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    """An empty token would open what it should close; what cannot be decoded is not quoted."""
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as refused:
        load_settings({"FORECLICK_HTTP__TOKEN_FILE": str(file)})
    assert "pass" not in str(refused.value).replace(str(file), "")
