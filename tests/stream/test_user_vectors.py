"""Laws of the topic of users' vectors: whose stand there, what they say, and that an erased user is gone from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.errors import BrokenInvariant
from stream.offline import OfflineRecord, score_batches
from stream.settings import load_settings
from stream.topics import topic_specs
from stream.user_vectors import UserVectors

START_MS = 1_735_000_000_000
SCHEMA = json.loads((Path(__file__).parents[2] / "stream/schemas/user_vectors.json").read_text())
SETTINGS = load_settings({}, user_vectors="topic")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_artefact(untrained(tmp_path_factory.mktemp("models"), name="shop", hidden=16))


def click(offset: int, user: str, erase: bool = False) -> OfflineRecord:
    event = {"user_id": user, "event_time_ms": START_MS + 1000 * offset, "action": "view"}
    return OfflineRecord(offset, user.encode(), None if erase else json.dumps(event).encode())


def scored(
    records: list[OfflineRecord], artefact: Any, micro_batch: int = 1024, **settings: Any
) -> list[Any]:
    chosen = load_settings({}, user_vectors="topic", **settings)
    engine = StepEngine(artefact, "cpu")
    options = {"partition": 3, "micro_batch": micro_batch}
    return [
        message
        for rendered in score_batches(records, chosen, artefact, engine, "clicks", **options)
        for message in rendered.messages.get(chosen.user_vectors_topic, ())
    ]


def test_each_user_of_a_micro_batch_has_the_vector_after_the_last_event(artefact: Any) -> None:
    """Three events of a, one of b: two vectors, which name the last events, fit the schema and are the model's."""
    records = [click(0, "a"), click(1, "b"), click(2, "a"), click(3, "a")]
    b, a = scored(records, artefact)
    assert (a[0], b[0]) == (b"a", b"b")
    for message in (a, b):
        Draft202012Validator(SCHEMA).validate(json.loads(message[1]))
    value, headers = json.loads(a[1]), dict(a[2])
    assert value["event_time_ms"] == START_MS + 3000
    assert value["dimension"] == len(value["vector"]) == 16
    assert value["model"] == {"name": "shop", "version": "1"}
    assert headers["ce_id"].endswith(b"/3/3/user_vector/a")
    assert headers["ce_type"] == b"foreclick.user_vector.v1"
    # A prediction that holds the vector says the same numbers.
    inside = load_settings({}, user_vectors="predictions")
    *_, last = [
        message
        for rendered in score_batches(records, inside, artefact, StepEngine(artefact, "cpu"), "clicks")
        for message in rendered.messages[inside.predictions_topic]
    ]
    assert json.loads(last[1])["user_vector"] == value["vector"]


def test_the_newest_vector_does_not_depend_on_micro_batches(artefact: Any) -> None:
    """However the records are cut, what compaction leaves is the same, byte for byte."""
    records = [click(offset, f"u{offset % 3}", erase=offset == 11) for offset in range(20)]
    kept = [
        {key: value for key, value, _ in scored(records, artefact, micro_batch)} for micro_batch in (1, 7, 64)
    ]
    assert kept[0] == kept[1] == kept[2]
    assert kept[0].keys() == {b"u0", b"u1", b"u2"}


def test_an_erased_user_is_erased_there_too(artefact: Any) -> None:
    """A tombstone of the input is one of the topic, after whatever the same micro-batch said of the user."""
    messages = scored([click(0, "a"), click(1, "b"), click(2, "a", erase=True)], artefact)
    assert [(key, value is None) for key, value, _ in messages if key == b"a"][-1] == (b"a", True)
    assert {key: value for key, value, _ in messages}[b"b"] is not None
    messages = scored([click(0, "a"), click(1, "a", erase=True), click(2, "a")], artefact)
    assert messages[-1][0] == b"a"
    assert messages[-1][1] is not None


def test_without_the_setting_there_is_no_such_topic(artefact: Any) -> None:
    """Neither messages nor a topic to create, unless vectors are asked for there; there it is compacted."""
    plain = load_settings({})
    names = {spec.name for spec in topic_specs(plain)}
    assert plain.user_vectors_topic not in names
    (spec,) = [spec for spec in topic_specs(SETTINGS) if spec.name == SETTINGS.user_vectors_topic]
    assert spec.config["cleanup.policy"] == "compact"
    for rendered in score_batches([click(0, "a")], plain, artefact, StepEngine(artefact, "cpu"), "clicks"):
        assert plain.user_vectors_topic not in rendered.messages


def test_a_vector_that_is_not_finite_is_never_written() -> None:
    """NaN in a state is a broken invariant, which names the event."""
    renderer = UserVectors("shop", "1", topic_id="T", source="/x")
    place = (np.array([START_MS]), np.array([3]), np.array([18]))
    with pytest.raises(BrokenInvariant, match="partition 3, offset 18"):
        renderer.messages(["a"], *place, np.array([[1.0, np.nan]], np.float16))
