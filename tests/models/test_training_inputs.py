"""Laws of bad logs: each trains to finite numbers, or is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.columns import Columns
from models.errors import TrainingError
from models.registry import load_artefact
from models.training import train
from models.training_log import TrainingLog
from models.vocabulary import ActionVocabulary, code_of
from tests.models import synthetic

USERS = 40


def log_of(histories: list[list[dict]], actions: tuple[str, ...] = synthetic.ACTIONS) -> TrainingLog:
    return of_columns(synthetic.columns_of(histories, actions), actions)


def of_columns(columns: Columns, actions: tuple[str, ...] = synthetic.ACTIONS) -> TrainingLog:
    users = [f"u{row}" for row in range(int(columns["row"].max()) + 1)]
    names = {code_of(name): name for name in synthetic.CATEGORIES + synthetic.RARE}
    return TrainingLog(columns, users, names, ActionVocabulary(actions))


def histories(change: Callable[[int, int, dict], dict], users: int = USERS) -> list[list[dict]]:
    """Ten events a user; ``change`` gets user, turn and event, and gives what replaces the event's fields."""
    return [
        [{**event, **change(user, turn, event)} for turn, event in enumerate(synthetic.events_of(user, 10))]
        for user in range(users)
    ]


def no_positives() -> TrainingLog:
    return log_of(histories(lambda u, t, e: {"action": "view" if e["action"] == "purchase" else e["action"]}))


def one_action() -> TrainingLog:
    return log_of(histories(lambda u, t, e: {"action": "view"}), ("view",))


def sixty_four_actions() -> TrainingLog:
    names = tuple(f"a{number}" for number in range(64))
    return log_of(histories(lambda u, t, e: {"action": names[(7 * u + 3 * t) % 64]}), names)


def many_users_with_one_event() -> TrainingLog:
    return log_of([synthetic.events_of(user, 10 if user % 3 == 0 else 1) for user in range(3 * USERS)])


def times_out_of_order() -> TrainingLog:
    return log_of(histories(lambda u, t, e: {"time_ms": e["time_ms"] - 3_600_000 * (t % 3)}))


def all_at_once() -> TrainingLog:
    return log_of(histories(lambda u, t, e: {"time_ms": 1_700_000_000_000}))


def centuries() -> TrainingLog:
    return log_of(histories(lambda u, t, e: {"time_ms": t * 3_000_000_000_000}))


def no_categories() -> TrainingLog:
    return log_of(histories(lambda u, t, e: {"category": None}))


def ten_thousand_categories() -> TrainingLog:
    """Each of two users."""
    columns = synthetic.shop(100, 2000, seed=1)
    events = len(columns["row"])
    copies = -(-20_000 // events)
    users = int(columns["row"].max()) + 1
    many = {name: np.concatenate([column] * copies) for name, column in columns.items()}
    many["row"] = many["row"] + np.repeat(np.arange(copies, dtype=np.int32) * users, events)
    names = [f"k{number}" for number in range(10_000)]
    codes = np.array([code_of(name) for name in names], np.uint32)
    many["category"] = codes[np.arange(len(many["row"])) % 10_000]
    log = of_columns(many)
    return TrainingLog(many, log.user_ids, dict(zip(codes.tolist(), names, strict=True)), log.actions)


def nan_prices() -> TrainingLog:
    return log_of(histories(lambda u, t, e: {"price": float("nan")}))


def absurd_prices() -> TrainingLog:
    return log_of(histories(lambda u, t, e: {"price": 1e300 if u == 0 else 0.0}))


def names_unseen_in_training() -> TrainingLog:
    """Tuning and test users have actions and categories that no other user has."""
    log = log_of(histories(lambda u, t, e: {}), (*synthetic.ACTIONS, "bow"))
    strange = log.shares()[log.columns["row"]] >= 60
    log.columns["action"][strange] = 3
    log.columns["category"][strange] = code_of("never seen")
    return log


TRAINABLE = [
    no_positives,
    one_action,
    sixty_four_actions,
    many_users_with_one_event,
    times_out_of_order,
    all_at_once,
    centuries,
    no_categories,
    ten_thousand_categories,
    nan_prices,
    absurd_prices,
    names_unseen_in_training,
]


@pytest.mark.parametrize("make", TRAINABLE, ids=lambda make: make.__name__)
def test_odd_logs_train_to_finite_numbers(tmp_path, make):
    """Weights, curve, thresholds and metrics are finite, and the folder loads."""
    artefact = load_artefact(train(make(), tmp_path, hidden=8, epochs=2))
    assert all(torch.isfinite(tensor).all() for tensor in artefact.network.state_dict().values())
    json.dumps(artefact.manifest, allow_nan=False)
    assert len(artefact.manifest["training"]["curve"]) == 2


def one_user() -> TrainingLog:
    return log_of([synthetic.events_of(0, 50)])


def one_event_each() -> TrainingLog:
    return log_of([synthetic.events_of(user, 1) for user in range(USERS)])


def nobody_tunes() -> TrainingLog:
    log = log_of(histories(lambda u, t, e: {}))
    fitted = log.user_ids[int(np.flatnonzero(log.shares() < 60)[0])]
    users = [
        fitted if 60 <= share < 70 else user for user, share in zip(log.user_ids, log.shares(), strict=True)
    ]
    return TrainingLog(log.columns, users, log.category_names, log.actions)


@pytest.mark.parametrize("make", [one_user, one_event_each, nobody_tunes], ids=lambda make: make.__name__)
def test_logs_with_an_empty_part_are_refused(tmp_path, make):
    """One sentence says which part is empty and what to change; nothing is written."""
    with pytest.raises(
        TrainingError, match=r"No user with two or more events falls .* other --bounds"
    ) as refused:
        train(make(), tmp_path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_test_users_trains(tmp_path):
    """Then there is nothing to measure on but the tuning users."""
    folder = train(log_of(histories(lambda u, t, e: {})), tmp_path, bounds=(50, 100), hidden=8, epochs=1)
    assert load_artefact(folder).manifest["metrics"].keys() == {"tuning"}


def test_absurd_weights_stop_training_with_a_sentence(tmp_path, monkeypatch):
    """A loss that is not finite ends the training; no version and no checkpoint is left of that epoch."""
    monkeypatch.setattr("models.fitting.LEARNING_RATE", 1e30)
    with pytest.raises(TrainingError, match=r"The loss is not finite in epoch 1\. .* another --seed"):
        train(log_of(histories(lambda u, t, e: {})), tmp_path, hidden=8, epochs=3)
    assert list(Path(tmp_path).glob("*/*")) == []


@pytest.mark.parametrize(
    ("device", "sentence"), [("abacus", "No device 'abacus'"), ("cuda", "There is no CUDA device here")]
)
def test_a_device_that_is_not_there_is_refused(tmp_path, monkeypatch, device, sentence):
    """What there is instead is said."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=sentence):
        train(one_user(), tmp_path, device=device)
