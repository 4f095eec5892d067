"""The Faust application as it is composed; nothing here needs a broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream.app import create_app
from stream.engine import requirements
from stream.errors import ConfigurationError, Unsupported
from stream.groups_app import detectors_of, told_kinds
from stream.settings import load_settings


def test_fausts_consumer_stays_off_until_an_agent_needs_it(tmp_path: Path) -> None:
    """The hot path is the engine's; Faust's recovery would lose records of it."""
    app = create_app(load_settings({}, data_dir=tmp_path))
    boot = app.boot_strategy
    assert not boot.enable_kafka_consumer
    assert app.clicks.engine in list(boot.server())

    @app.agent(app.topic("asked"))
    async def answer(stream: object) -> None: ...

    assert boot.enable_kafka_consumer


def test_faust_gets_the_same_security_as_the_engine(tmp_path: Path) -> None:
    """A producer that fell back to a plain connection would not be noticed on a laptop."""
    secure = {
        "FORECLICK_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "FORECLICK_KAFKA__SASL_MECHANISM": "SCRAM-SHA-256",
        "FORECLICK_KAFKA__SASL_USERNAME": "reader",
        "FORECLICK_KAFKA__SASL_PASSWORD": "hunter2",
    }
    credentials = create_app(load_settings(secure, data_dir=tmp_path)).conf.broker_credentials
    assert credentials.protocol.value == "SASL_SSL"
    assert credentials.username == "reader"
    assert "hunter2" not in repr(credentials)
    assert create_app(load_settings({}, data_dir=tmp_path)).conf.broker_credentials is None


def test_another_version_of_a_pinned_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly once was proven with one version each."""
    requirements.check()
    monkeypatch.setattr(requirements, "version", lambda package: "0.99")
    with pytest.raises(Unsupported, match=r"faust-streaming 0\.99 is installed, but .* 0\.15\.3"):
        requirements.check()


def test_something_relied_on_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch release may remove what has no leading underscore, too."""
    monkeypatch.delattr(requirements.AIOKafkaClient, "coordinator_lookup")
    with pytest.raises(Unsupported, match=r"AIOKafkaClient\.coordinator_lookup"):
        requirements.check()


def test_a_silenced_kind_is_not_looked_for_and_its_records_are_not_told(tmp_path: Path) -> None:
    """An unknown one is an error at the start, not a detector that somebody believes to be off."""
    silent = load_settings({}, data_dir=tmp_path, groups__silenced="click_farm,boosted_item")
    assert not {"click_farm", "boosted_item"} & {each.kind for each in detectors_of(silent, "clicks")}
    assert "item" in told_kinds(load_settings({}, data_dir=tmp_path))
    assert "item" not in told_kinds(silent)
    with pytest.raises(ConfigurationError, match="SILENCED names click_fram; kinds are boosted_item, "):
        create_app(load_settings({}, data_dir=tmp_path, groups__silenced="click_fram"))
