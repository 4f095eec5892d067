"""Another model between two micro-batches, without a broker: what becomes of rows, names and predictions."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.clicks_stage import clicks_rounds, clicks_work
from stream.model_step import ServedModel
from stream.offline import OfflineRecord
from stream.partition_names import MODEL_KEY, NAME_KEY, PartitionNames
from stream.rounds import FoldedRound
from stream.rows import RowLayout, read
from stream.scoring import ClicksRequest
from stream.settings import load_settings
from stream.stage import Rendered

START_MS = 1_735_000_000_000


def served(root: Path, name: str, **options: Any) -> ServedModel:
    artefact = load_artefact(untrained(root, name=name, **options))
    return ServedModel(artefact, StepEngine(artefact, "cpu"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServedModel]:
    """Models that differ in weights, in width, in actions and in categories."""
    root = tmp_path_factory.mktemp("models")
    small = {"categories": ("c0", "c1", "c2")}
    return {
        "old": served(root, "old", hidden=16, **small),
        "retrained": served(root, "retrained", hidden=16, seed=2, **small),
        "wider": served(root, "wider", hidden=32, seed=3, categories=("c1", "c9")),
        "reordered": served(
            root, "reordered", hidden=16, actions=("cart", "purchase", "view", "dance"), **small
        ),
    }


class Shop:
    """One partition in memory: rows, and the model that its next micro-batch is scored with."""

    def __init__(self, model: ServedModel, rows: dict[bytes, bytes] | None = None):
        self.model = model
        self.rows = {} if rows is None else rows
        self.rounds: list[FoldedRound] = []
        self.offset = 100 * bool(self.rows)
        reserved = [(key, row) for key, row in self.rows.items() if key.startswith((NAME_KEY, MODEL_KEY))]
        settings = load_settings({})
        self.together = clicks_rounds(settings, lambda: self.model, topic="clicks", topic_id=bytes(16))
        self.work = clicks_work(
            settings,
            topic="clicks",
            topic_id=bytes(16),
            partition=0,
            score=self.score,
            names=PartitionNames(reserved),
        )

    async def score(self, request: ClicksRequest) -> Rendered:
        folded = self.together.fold([request])
        self.rounds.append(folded)
        return self.together.render(folded, self.together.step(folded))[0]

    def meet(self, *events: tuple[str, str, str]) -> list[dict[str, Any]]:
        """A micro-batch of (user, action, category); its predictions."""
        records = []
        for user, action, category in events:
            event = {
                "user_id": user,
                "event_time_ms": START_MS + 60_000 * self.offset,
                "action": action,
                "category_id": category,
                "item_id": f"i{self.offset % 5}",
            }
            records.append(OfflineRecord(self.offset, user.encode(), json.dumps(event).encode()))
            self.offset += 1
        decoded = self.work.decode(records)
        rows = [self.rows.get(key) for key in decoded.keys]
        rendered = asyncio.run(self.work.score(decoded, rows, None))
        self.rows |= {key: row for key, row in rendered.rows if row is not None}
        return [json.loads(value) for _, value, _ in rendered.messages["predictions"]]


def visit(user: str, count: int) -> list[tuple[str, str, str]]:
    return [(user, ("view", "view", "cart", "purchase")[n % 4], f"c{n % 4}") for n in range(count)]


@pytest.mark.parametrize("name", ["retrained", "wider", "reordered"])
def test_a_row_is_rebuilt_from_its_window_when_its_user_comes_by(models, name):
    """Exactly as if the model had seen the window's events in a blank state; who stays away keeps the old row."""
    shop = Shop(models["old"])
    shop.meet(*visit("u1", 40), *visit("u2", 3))
    before = dict(shop.rows)
    shop.model = new = models[name]
    (prediction,) = shop.meet(("u1", "view", "c1"))
    assert prediction["model"] == {"name": name, "version": "1"}
    assert set(prediction["next_action"]) == set(new.artefact.actions.names)
    assert shop.rows[b"u2"] == before[b"u2"]
    assert read(shop.rows[b"u1"])["model"]["fingerprint"] == f"{new.artefact.fingerprint:016x}"

    last = shop.rounds[-1]
    assert last.stale is not None
    rows, columns = last.stale
    assert rows.tolist() == [0]
    assert len(columns["row"]) == 32
    blank, empty = np.zeros((1, new.artefact.state_width), np.float16), np.zeros((1, 32), np.uint32)
    rebuilt = new.engine.step(blank, empty, columns).state
    stored = RowLayout(len(new.artefact.actions), new.artefact.state_width).unpack([shop.rows[b"u1"]])
    assert rebuilt.any()
    assert np.array_equal(
        new.engine.step(rebuilt, last.window_category, last.folded.columns).state, stored["state"]
    )


def test_a_rebuilt_row_is_not_rebuilt_again(models):
    """The second event after the exchange is carried on from the first."""
    shop = Shop(models["old"])
    shop.meet(*visit("u1", 5))
    shop.model = models["wider"]
    shop.meet(("u1", "view", "c1"))
    shop.meet(("u1", "cart", "c1"))
    assert shop.rounds[-2].stale is not None
    assert shop.rounds[-1].stale is None


def test_going_back_serves_the_older_version_again(models):
    """There and back: predictions name each model in turn, and nothing of the row but its state was lost."""
    shop, steady = Shop(models["old"]), Shop(models["old"])
    for model in ("old", "wider", "reordered", "old"):
        shop.model = models[model]
        for each in (shop, steady):
            predictions = each.meet(*visit("u1", 6))
            if each is shop:
                assert {prediction["model"]["name"] for prediction in predictions} == {model}
    told, expected = read(shop.rows[b"u1"]), read(steady.rows[b"u1"])
    for part in ("events", "session", "position", "actions", "window"):
        assert told[part] == expected[part], part


def test_actions_are_counted_by_name_in_any_vocabulary(models):
    """Codes are places in a vocabulary: rows are translated by the names, what is unknown becomes other."""
    shop = Shop(models["old"])
    events = [("u1", name, "c1") for name in ("view", "view", "click", "cart", "purchase", "view")]
    shop.meet(*events)
    shop.model = models["reordered"]
    shop.meet(("u1", "dance", "c1"))
    names = shop.model.artefact.actions.names
    row = read(shop.rows[b"u1"])
    counts = {names[entry["code"]]: entry["in_life"] for entry in row["actions"]}
    assert counts == {"view": 3, "cart": 1, "purchase": 1, "dance": 1, "other": 1}
    assert [names[entry["action"]] for entry in row["window"]] == [
        *("view", "view", "other", "cart", "purchase", "view", "dance")
    ]


def test_vocabularies_are_known_after_a_restart(models):
    """They travel beside the rows: a worker that never served the old model reads its rows by its own words."""
    shop = Shop(models["reordered"])
    shop.meet(("u1", "cart", "c1"), ("u1", "view", "c1"))
    again = Shop(models["old"], shop.rows)
    again.meet(("u1", "view", "c1"))
    names = models["old"].artefact.actions.names
    counts = {names[entry["code"]]: entry["in_life"] for entry in read(again.rows[b"u1"])["actions"]}
    assert counts == {"cart": 1, "view": 2}


def test_categories_of_the_old_vocabulary_keep_their_names(models):
    """The pointer may name what stands in the window, though the new model never heard of it; after a restart too."""
    shop = Shop(models["old"])
    shop.meet(*[("u1", "view", "c2")] * 30)
    again = Shop(models["wider"], shop.rows)
    (prediction,) = again.meet(("u1", "view", "c1"))
    assert "c2" in {entry["category"] for entry in prediction["next_category"]}


def test_a_model_is_remembered_once_in_a_partition(models):
    """Its vocabularies are a reserved row of the first micro-batch that it scored, and of no other."""
    shop = Shop(models["old"])
    assert asyncio.run(shop.work.score(shop.work.decode([]), [], None)).rows == []
    shop.meet(("u1", "view", "c1"))
    key = MODEL_KEY + models["old"].artefact.fingerprint.to_bytes(8, "little")
    assert json.loads(shop.rows.pop(key))["actions"][0] == "view"
    shop.meet(("u1", "view", "c1"))
    assert key not in shop.rows
