"""The stock agent of the bench does the same work as the pipeline, or its rate would be no yardstick."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from models.registry import Artefact, load_artefact, untrained
from models.runtime import StepEngine
from stream.offline import OfflineRecord, score_batches
from stream.rows import RowLayout
from stream.settings import load_settings
from tests.bench.stock_clicks import StockClicks, decode
from tests.bench.traffic import Traffic

TOPIC, TOPIC_ID = "clicks", bytes(range(16))
USERS, EVENTS = 8, 400
# Probabilities: one row rounds otherwise than a tile of 64, and the float16 state carries that along.
TOLERANCE = 1e-3
# A surprisal in nats is the logarithm of a probability that may be small: the same error weighs more there.
NATS_TOLERANCE = 1e-2
# The median is found by halving an interval of log seconds eleven times: neighbours are half a percent apart.
MEDIAN_TOLERANCE = 1e-2


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return load_artefact(
        untrained(tmp_path_factory.mktemp("models"), categories=tuple(f"c{i}" for i in range(40)))
    )


@pytest.fixture(scope="module")
def both(artefact: Artefact) -> tuple[list[Any], list[Any], dict[bytes, bytes], dict[bytes, bytes]]:
    """Messages (value, headers) and last rows of the pipeline and of the stock agent, for the same events."""
    # Categories beyond the vocabulary too, and gaps around the end of a session.
    names = tuple(f"c{i}" for i in range(0, 60, 2))
    pairs = list(Traffic(USERS, names, "test").records(EVENTS, 1_760_000_000_000, 150_000))
    pairs += pairs[-3:]  # repeated events, which both drop
    settings = load_settings({}, churn__alerts=False)  # the agent misses nobody
    ours: list[Any] = []
    our_rows: dict[bytes, bytes | None] = {}
    records = [OfflineRecord(offset, key, value) for offset, (key, value) in enumerate(pairs)]
    engine = StepEngine(artefact, device="cpu")
    for rendered in score_batches(
        records, settings, artefact, engine, TOPIC, topic_id=TOPIC_ID, partition=3, micro_batch=256
    ):
        ours += [
            (value, dict(headers)) for _, value, headers in rendered.messages[settings.predictions_topic]
        ]
        our_rows |= {key: row for key, row in rendered.rows if key.startswith(b"u")}
    work = StockClicks(artefact, TOPIC, TOPIC_ID, f"/{settings.app_id}/{TOPIC}")
    stock: list[Any] = []
    stock_rows: dict[bytes, bytes] = {}
    with torch.inference_mode():
        for offset, (key, value) in enumerate(pairs):
            folded = work.fold(decode(value), stock_rows.get(key), 3, offset)
            if folded is not None:
                answer = work.score(folded)
                stock.append(work.render(folded, answer, 3, offset))
                stock_rows[key] = work.pack(folded)
    return ours, stock, our_rows, stock_rows


def close(ours: Any, stock: Any, path: str = "$") -> None:
    """Same fields in the same order, same texts and integers, numbers within the tolerance."""
    if isinstance(ours, dict):
        assert list(ours) == list(stock), path
        for name in ours:
            close(ours[name], stock[name], f"{path}.{name}")
    elif isinstance(ours, float):
        tolerance = NATS_TOLERANCE if "nats" in path else TOLERANCE
        relative = MEDIAN_TOLERANCE if path.endswith("median_gap_s") else TOLERANCE
        assert stock == pytest.approx(ours, abs=tolerance, rel=relative), path
    else:
        assert ours == stock, path


def test_stock_predictions_are_those_of_the_pipeline(both: tuple[Any, ...]) -> None:
    """Field by field, for every event, repeats left out on both sides."""
    ours, stock, _, _ = both
    assert len(ours) == len(stock) == EVENTS
    for (our_value, our_headers), (stock_value, stock_headers) in zip(ours, stock, strict=True):
        assert our_headers == stock_headers
        one, other = json.loads(our_value), json.loads(stock_value)
        # Entries of nearly the same size may change places, so lists are compared by name.
        for prediction in (one, other):
            prediction["next_category"] = {
                c["category"]: c["probability"] for c in prediction["next_category"]
            }
            prediction["anomaly"]["reasons"] = {
                r["code"]: r["nats"] for r in prediction["anomaly"]["reasons"]
            }
        for entry in (lambda p: p["next_category"], lambda p: p["anomaly"]["reasons"]):
            first, second = entry(one), entry(other)
            # The last of the 20 may be another one when its probability is that of the 21st.
            for name in first.keys() ^ second.keys():
                assert (first | second)[name] <= min([*first.values(), *second.values()]) + TOLERANCE
            shared = first.keys() & second.keys()
            assert len(shared) >= len(first) - 2
            close(
                {name: first[name] for name in sorted(shared)},
                {name: second[name] for name in sorted(shared)},
            )
        one["next_category"] = other["next_category"] = None
        one["anomaly"]["reasons"] = other["anomaly"]["reasons"] = None
        close(one, other)


def test_stock_rows_hold_the_bytes_of_the_pipeline_but_for_the_state_vector(
    artefact: Artefact, both: tuple[Any, ...]
) -> None:
    """Counters, windows and the ring of ids are equal to the bit; the state vector within float16 steps."""
    _, _, our_rows, stock_rows = both
    layout = RowLayout(len(artefact.actions), artefact.state_width, artefact.window)
    assert our_rows.keys() == stock_rows.keys()
    ours, stock = layout.unpack(list(our_rows.values())), layout.unpack([stock_rows[key] for key in our_rows])
    for name in ours.dtype.names:
        if name != "state":
            assert ours[name].tobytes() == stock[name].tobytes(), name
    assert abs(ours["state"].astype("f4") - stock["state"].astype("f4")).max() < 0.01
