"""Training and the stream make the same numbers of the same file, to the last bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from models.features import Inputs, raw_inputs
from models.registry import Artefact, load_artefact, untrained
from models.runtime import StepEngine
from stream.files import FileRecord, LogFile
from stream.offline import records_of, score_batches
from stream.settings import load_settings
from stream.simulated import simulated_records
from stream.training_log import training_log

USERS, EVENTS = 30, 500
EXTRAS = ("duration", "value")


class Eavesdropper:
    """A step engine that keeps the columns that it is asked about."""

    def __init__(self, engine: StepEngine) -> None:
        self.engine = engine
        self.columns: list[dict[str, np.ndarray]] = []

    def step(self, state: np.ndarray, window: np.ndarray, columns: dict[str, np.ndarray]) -> Any:
        self.columns.append(columns)
        return self.engine.step(state, window, columns)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return load_artefact(untrained(tmp_path_factory.mktemp("models"), extras=EXTRAS))


@pytest.fixture(scope="module")
def records() -> list[FileRecord]:
    """Simulated events, most of them with numbers of their own."""
    rng = np.random.default_rng(11)
    told = []
    for record in simulated_records(USERS, EVENTS, seed=11):
        event = json.loads(record.value)
        held = [name for name in (*EXTRAS, "undeclared") if rng.random() < 0.7]
        event["extra"] = {name: rng.normal() * 10.0 ** rng.integers(-3, 20) for name in held}
        told.append(record._replace(value=json.dumps(event).encode()))
    return told


def streamed(records: list[FileRecord], artefact: Artefact, micro_batch: int) -> list[Inputs]:
    """The inputs of each micro-batch, by the worker's own stage: rows go through their bytes between batches."""
    heard = Eavesdropper(StepEngine(artefact, device="cpu"))
    for _ in score_batches(
        records_of(records), load_settings({}), artefact, heard, "clicks", micro_batch=micro_batch
    ):
        pass
    return [raw_inputs(columns, artefact.features) for columns in heard.columns]


@pytest.mark.parametrize("micro_batch", [7, 250])
def test_training_and_the_stream_read_the_same_bits(
    artefact: Artefact, records: list[FileRecord], micro_batch: int
) -> None:
    """Every number and every index of every event, whatever the micro-batches."""
    log = training_log([LogFile("simulated", "canonical", records)], actions=artefact.actions, extras=EXTRAS)
    whole = raw_inputs(log.columns, artefact.features)
    parts = streamed(records, artefact, micro_batch)
    sizes = [min(micro_batch, EVENTS - start) for start in range(0, EVENTS, micro_batch)]
    user = {name.encode(): row for row, name in enumerate(log.user_ids)}
    by_user = np.argsort([user[record.key] for record in records], kind="stable")
    for name in ("x_NF", "action_NL", "category_N", "item_N"):
        made = [getattr(part, name)[:size].numpy() for part, size in zip(parts, sizes, strict=True)]
        expected = getattr(whole, name)[:EVENTS].numpy()
        assert np.concatenate(made)[by_user].tobytes() == expected.tobytes(), name
