"""The network on one user's row: the same weights, heads and scores as ``models.runtime``, written for a single event.

The LSTM and the linear heads are torch's, on one row (the heads on two: the state before the event, which says how
surprising it was, and the state after it). What is left are a few dozen numbers, for which plain Python and its math
module are faster than any array library.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from models.anomaly import BUCKET_EDGES, LEVELS
from models.errors import ArtefactError
from models.features import FEATURES, FURTHEST, HABIT_MASS, HASH_BUCKETS, ITEM_BUCKETS, ITEM_UNSEEN, LAGS
from models.heads import COMPONENTS
from models.registry import Artefact
from tests.bench.stock_row import CODES, NEVER_S, WINDOW, Seen, UserRow

TOP_CATEGORIES = 20
HALF_MAX = 65504.0
# The numbers of ``_inputs`` in their order; -1 is one an action.
_NUMBERS = {
    "category_missing": 1,
    "log_gap": 1,
    "first_event": 1,
    "hour": 2,
    "weekday": 2,
    "session_position": 1,
    "new_session": 1,
    "price": 1,
    "price_missing": 1,
    "repeat_item": 1,
    "repeat_category": 1,
    "category_run": 1,
    "category_share": 1,
    "session_actions": -1,
    "life_actions": -1,
    "action_age": -1,
    "life_events": 1,
    "window_actions": -1,
    "habit": -1,
    "next_habit": -1,
}
_MINUTE_MS = 60_000
_HALFS = struct.Struct(f"<{WINDOW}e")
_MIN_SIGMA = 0.05
_SQRT_2 = math.sqrt(2)
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SESSION_LOG_GAP = math.log1p(1800.0)
_LEVELS: list[float] = LEVELS.tolist()

Mixture = list[tuple[float, float, float]]  # weight, mean and sigma of each component, in log seconds


@dataclass(slots=True)
class Answer:
    """Scores of one event, unrounded."""

    next_action: list[float]
    next_category: list[tuple[int, float]]
    purchase_probability: float
    churn_probability: float
    median_gap_s: float
    terms: tuple[float, float, float]
    too_predictable: float
    anomaly_score: float


class OneRowModel:
    """A model that advances one user by one event. Call it inside ``torch.inference_mode``.

    Raises:
        ArtefactError: the model reads other features than the ones written out here.
    """

    def __init__(self, artefact: Artefact):
        network, features = artefact.network, artefact.features
        trunk, heads = network.trunk, network.heads
        self.hidden = trunk.hidden
        self.fingerprint = artefact.fingerprint
        if features.extras:
            raise ArtefactError("The stock agent reads no extras. Give the bench a model without.")
        order = _columns_of_the_network(len(artefact.actions))
        shortcut = network.shortcut_weight()
        self._shortcut = shortcut.clone()
        self._shortcut[:, : len(order)] = shortcut[:, order]
        weight_ih = trunk.weight_ih.clone()
        weight_ih[:, : len(order)] = trunk.weight_ih[:, order]
        self._lstm = (weight_ih, trunk.weight_hh, trunk.bias, torch.zeros_like(trunk.bias))
        self._small, self._category = heads.small, heads.category
        self._content = float(heads.content)
        self._n_actions = len(artefact.actions)
        self._vocabulary = len(artefact.categories)
        self._index = {code: i + 1 for i, code in enumerate(artefact.categories.codes.tolist())}
        self._codes = [0, *artefact.categories.codes.tolist()]
        self._mean, self._sd = features.mean[order], features.sd[order]
        self._medians = features.log_price_median.tolist()
        self._utc_offset_ms = 1000 * features.utc_offset_s
        self._action_embedding = network.action.weight.numpy()
        self._category_embedding = network.category.weight.numpy()
        self._item_embedding = network.item.weight.numpy()
        self._action_share = features.action_share.tolist()
        self._known_items = features.known_items.tolist()
        self._log_horizon = math.log(artefact.churn_horizon_s)
        reference = artefact.reference
        self._center, self._scale = reference.center.tolist(), reference.scale.tolist()
        self._surprisal, self._predictable = reference.surprisal.tolist(), reference.predictable.tolist()
        self._either = reference.either.tolist()

    def step(self, row: UserRow, seen: Seen, window_before: bytes) -> Answer:
        """Move the row's state vector and say what comes next.

        Args:
            row: after the event, its state vector from before it.
            seen: the event.
            window_before: the row's window of categories before the event.
        """
        D = self._n_actions + 1
        read = D + self.hidden
        before = np.frombuffer(row.state, "<f2")
        state = torch.from_numpy(before.astype(np.float32)[None])
        x = self._inputs(row, seen)
        direct = torch.nn.functional.linear(x, self._shortcut)
        end = read + self.hidden
        older_before = [int(place) for place in before[end:]]
        older = self._older(older_before, window_before, row, seen)
        h, c = torch.lstm_cell(x, (state[:, D:read], state[:, read:end]), *self._lstm)
        after = torch.cat([direct, h, c, torch.tensor([older])], dim=1).clamp_(-HALF_MAX, HALF_MAX).half()
        row.state = after.numpy().tobytes()
        row.fingerprint = self.fingerprint
        both = torch.cat([state[:, :read], after[:, :read].float()])
        small = self._small(both).tolist()
        logits = self._category(both)
        chances = torch.softmax(logits, dim=1).numpy()
        logits_of = logits.numpy()

        codes = self._named(older_before) + CODES.unpack(window_before)
        terms = self._terms(small[0], chances[0], logits_of[0], codes, seen)
        codes = self._named(older) + CODES.unpack(row.window_categories)
        actions, mixture, purchase = self._small_heads(small[1])
        too_predictable, score = self._judge(row, sum(terms))
        return Answer(
            actions,
            self._top(small[1], chances[1], logits_of[1], codes),
            purchase,
            _survival(self._log_horizon, mixture),
            math.exp(_median(mixture)),
            terms,
            too_predictable,
            score,
        )

    def _older(self, before: list[int], window_before: bytes, row: UserRow, seen: Seen) -> list[int]:
        """The vocabulary indices of categories that the window has forgotten, as of ``models.older``."""
        oldest = CODES.unpack(window_before)[0]
        stays = oldest in CODES.unpack(row.window_categories)
        line = [*before, 0 if stays else self._index.get(oldest, 0)]
        entered = self._index.get(seen.category, 0)
        kept = [place for place in line if place and place != entered]
        return [*[0] * (len(line) - len(kept)), *kept][1:]

    def _named(self, older: list[int]) -> tuple[int, ...]:
        return tuple(self._codes[place] if place else 0 for place in older)

    # ------------------------------------------------------------------ what the network reads

    def _inputs(self, row: UserRow, seen: Seen) -> torch.Tensor:
        log1p, tau = math.log1p, math.tau
        local_ms = seen.event_time_ms + self._utc_offset_ms
        minute = local_ms // _MINUTE_MS
        hour, weekday = minute % 1440 * (tau / 1440), minute // 1440 % 7 * (tau / 7)
        window = row.window_actions[WINDOW - row.window_count :]
        recent = window[1 - WINDOW :]
        followers = [b for a, b in pairwise(window) if a == seen.action]
        category = seen.category
        codes = CODES.unpack(row.window_categories)
        run = (
            next((n for n, code in enumerate(reversed(codes)) if code != category), WINDOW) if category else 0
        )
        index = self._index.get(category, 0)
        priced = seen.log_price == seen.log_price  # NaN is not equal to itself
        numbers = [
            category == 0,
            log1p(max(seen.gap_ms, 0) * 1e-3),
            seen.gap_ms < 0,
            math.sin(hour),
            math.cos(hour),
            math.sin(weekday),
            math.cos(weekday),
            log1p(row.session_events),
            seen.new_session,
            seen.log_price - self._medians[index] if priced else 0.0,
            not priced,
            seen.repeat_item,
            seen.repeat_category,
            log1p(run),
            codes.count(category) / WINDOW if category else 0.0,
            *map(log1p, row.action_session),
            *map(log1p, row.action_life),
            *[0.0 if age == NEVER_S else log1p(age + 1) for age in seen.ages_s],
            log1p(row.life_events),
            *[recent.count(action) / len(recent) for action in range(self._n_actions)],
        ]
        life, after_this = [], []
        for action, share in enumerate(self._action_share):
            own = (row.action_life[action] + HABIT_MASS * share) / (row.life_events + HABIT_MASS)
            following = (followers.count(action) + HABIT_MASS * own) / (len(followers) + HABIT_MASS)
            life.append(math.log(own / share))
            after_this.append(math.log(following / share))
        numbers += life + after_this
        scaled = np.array(numbers, np.float32)
        scaled -= self._mean
        scaled /= self._sd
        np.clip(scaled, -FURTHEST, FURTHEST, out=scaled)
        embedded = index if index or not category else self._vocabulary + 1 + category % HASH_BUCKETS
        last = [*reversed(window[-1 - LAGS :]), *[self._n_actions] * LAGS][: 1 + LAGS]
        item = seen.item & (ITEM_BUCKETS - 1)
        item = item + ITEM_UNSEEN + 1 if self._known_items[item] else ITEM_UNSEEN
        x = np.concatenate(
            [
                scaled,
                *self._action_embedding[last],
                self._category_embedding[embedded],
                self._item_embedding[item if seen.item else 0],
            ]
        )
        return torch.from_numpy(x[None])

    # ------------------------------------------------------------------ heads

    def _small_heads(self, small: list[float]) -> tuple[list[float], Mixture, float]:
        A = self._n_actions
        return (
            _softmax(small[:A]),
            _mixture(small[A : A + 3 * COMPONENTS]),
            _sigmoid(small[A + 3 * COMPONENTS]),
        )

    def _pointer(
        self, small: list[float], logits: np.ndarray, codes: tuple[int, ...]
    ) -> tuple[list[int], list[int], list[float], float]:
        """Codes, indices and probabilities of the window's categories, and what they share."""
        at = self._n_actions + 3 * COMPONENTS + 1
        slots = [slot for slot, code in enumerate(codes) if code]
        if not slots:
            return [], [], [], 0.0
        held = [codes[slot] for slot in slots]
        index = [self._index.get(code, 0) for code in held]
        content = self._content
        scores = _softmax(
            [
                small[at + 1 + slot] + content * logit
                for slot, logit in zip(slots, logits[index].tolist(), strict=True)
            ]
        )
        share = _sigmoid(small[at])
        return held, index, [share * score for score in scores], share

    def _terms(
        self, small: list[float], chances: np.ndarray, logits: np.ndarray, codes: tuple[int, ...], seen: Seen
    ) -> tuple[float, float, float]:
        """Nats of action, category and gap of the event under the prediction made before it."""
        A = self._n_actions
        action = -math.log(_softmax(small[:A])[seen.action])
        category = gap = 0.0
        if seen.category:
            held, _, pointer, share = self._pointer(small, logits, codes)
            named = float(chances[self._index.get(seen.category, 0)]) * (1 - share)
            named += sum(p for p, code in zip(pointer, held, strict=True) if code == seen.category)
            category = -math.log(max(named, 1e-9))
        if seen.gap_ms >= 0:
            mixture = _mixture(small[A : A + 3 * COMPONENTS])
            gap = -_log_likelihood(math.log(max(seen.gap_ms * 1e-3, 1.0)), mixture)
        return action, category, gap

    def _top(
        self, small: list[float], chances: np.ndarray, logits: np.ndarray, codes: tuple[int, ...]
    ) -> list[tuple[int, float]]:
        held, index, pointer, share = self._pointer(small, logits, codes)
        mixed = chances * np.float32(1 - share)
        outside: dict[int, float] = {}
        for code, i, p in zip(held, index, pointer, strict=True):
            if i:
                mixed[i] += p
            else:
                outside[code] = outside.get(code, 0.0) + p
        mixed[0] = 0.0  # the unseen class has no name
        best = (
            np.argpartition(mixed, -TOP_CATEGORIES)[-TOP_CATEGORIES:]
            if len(mixed) > TOP_CATEGORIES
            else range(len(mixed))
        )
        code_at = self._codes
        top = [(code_at[i], p) for i, p in zip(list(best), mixed[best].tolist(), strict=True) if p >= 5e-7]
        top += outside.items()
        top.sort(key=_probability, reverse=True)
        return top[:TOP_CATEGORIES]

    # ------------------------------------------------------------------ anomaly

    def _judge(self, row: UserRow, surprisal_nats: float) -> tuple[float, float]:
        bucket = bisect_right(BUCKET_EDGES, row.life_events)
        excess = 0.0
        for value, center, scale in zip(
            _statistics(row), self._center[bucket], self._scale[bucket], strict=True
        ):
            if value is not None and value > center:
                excess += (value - center) / scale
        predictable = _score(excess, self._predictable[bucket])
        worse = max(_score(surprisal_nats, self._surprisal[bucket]), predictable)
        return predictable, _score(worse, self._either[bucket])


def _columns_of_the_network(n_actions: int) -> list[int]:
    """Where the numbers of ``_inputs`` stand among those that the network was trained on.

    Raises:
        ArtefactError: the network reads other features than the ones written out here.
    """
    starts, at = {}, 0
    for feature in FEATURES:
        starts[feature.name] = at
        at += n_actions if feature.width < 0 else feature.width
    if starts.keys() - {"action", "last_actions", "category", "item"} != _NUMBERS.keys():
        raise ArtefactError(
            f"The stock agent writes out the features {', '.join(_NUMBERS)}; this build's models read "
            f"{', '.join(starts)}. Bring tests/bench/stock_model.py in line."
        )
    widths = ((name, n_actions if width < 0 else width) for name, width in _NUMBERS.items())
    return [starts[name] + i for name, width in widths for i in range(width)]


def _statistics(row: UserRow) -> tuple[float | None, float | None, float | None]:
    """Regular gaps, action loop and same items of the user's last 32 events."""
    count = row.window_count
    gaps = [gap for gap in _HALFS.unpack(row.window_log_gaps)[WINDOW + 1 - count :] if gap < _SESSION_LOG_GAP]
    regular = loop = same = None
    if (n := len(gaps)) >= 4:
        mean = sum(gaps) / n
        variance = sum([gap * gap for gap in gaps]) / n - mean * mean
        regular = -math.log(math.sqrt(max(variance, 0.0)) + 0.02)
    if count >= 8:
        actions = row.window_actions[WINDOW - count :]
        agreement = [
            sum([a == b for a, b in zip(actions[lag:], actions, strict=False)]) / (count - lag)
            for lag in range(1, 6)
        ]
        loop = max(agreement[1:]) - agreement[0]
    items = [item for item in CODES.unpack(row.window_items) if item]
    if len(items) >= 4:
        same = (len(items) - len(set(items))) / len(items)
    return regular, loop, same


def _score(value: float, table: list[float]) -> float:
    """The level of a value in its quantiles; beyond the last it rises towards 1."""
    last = table[-1]
    if value > last:
        return 1 - (1 - _LEVELS[-1]) / (1 + (value - last) / (last - table[-9] + 1e-3))
    place = min(max(bisect_right(table, value) - 1, 0), len(table) - 2)
    part = min(1.0, max(0.0, (value - table[place]) / (table[place + 1] - table[place])))
    return _LEVELS[place] + part * (_LEVELS[place + 1] - _LEVELS[place])


def _probability(entry: tuple[int, float]) -> float:
    return entry[1]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _softmax(logits: list[float]) -> list[float]:
    most = max(logits)
    shifted = [math.exp(logit - most) for logit in logits]
    total = sum(shifted)
    return [value / total for value in shifted]


def _mixture(raw: list[float]) -> Mixture:
    weights = _softmax(raw[:COMPONENTS])
    means = raw[COMPONENTS : 2 * COMPONENTS]
    sigmas = [
        math.log1p(math.exp(min(s, 30.0))) + max(0.0, s - 30.0) + _MIN_SIGMA for s in raw[2 * COMPONENTS :]
    ]
    return list(zip(weights, means, sigmas, strict=True))


def _survival(y: float, mixture: Mixture) -> float:
    return sum([0.5 * w * math.erfc((y - mean) / (sigma * _SQRT_2)) for w, mean, sigma in mixture])


def _log_likelihood(y: float, mixture: Mixture) -> float:
    if y > 0:
        likelihood = sum(
            [
                w * math.exp(-0.5 * ((y - mean) / sigma) ** 2 - _LOG_SQRT_2PI) / sigma
                for w, mean, sigma in mixture
            ]
        )
    else:
        likelihood = 1 - _survival(0.0, mixture)
    return math.log(max(likelihood, 1e-12))


def _median(mixture: Mixture) -> float:
    """The log seconds that half of the probability lies below; eleven halvings, as ``models.heads``."""
    means = [mean for _, mean, _ in mixture]
    low, width = min(means), max(means) - min(means)
    for _ in range(11):
        width *= 0.5
        if _survival(low + width, mixture) > 0.5:
            low += width
    return max(0.0, low + 0.5 * width)
