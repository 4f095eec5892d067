"""One micro-batch of events: waves, tiles, predictions.

A micro-batch that holds several events of one user runs in waves: first events of all users, then second ones. Only
the recurrence needs waves; features and heads run over all events at once. Every state has its heads computed once:
the states before the batch, which say how surprising its first events are, and the states after each event.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from models.anomaly import predictability_statistics
from models.columns import Columns
from models.errors import NotFinite
from models.features import inputs, padded_rows
from models.heads import COMPONENTS, SLOTS, GapMixture
from models.networks.trunk import HALF_MAX
from models.older import OLDER, forgotten, remember
from models.prepared import KEY_BITS, PreparedNetwork
from models.return_odds import user_numbers

TOP_CATEGORIES = 20
_MICRO = 1_000_000
# 2**23: added to a float32 below it, the sum's last 23 bits are the rounded number itself.
_ROUNDER = 8_388_608.0


@dataclass(frozen=True)
class StepResult:
    """Predictions made after each of M events, in the order of the events; B users' new states.

    ``terms``: nats of action, category and gap of this event under the prediction made before it; the surprisal is
    their sum. A first event has no gap term, an event without category no category term: they are 0.
    Category probabilities are rounded to 6 decimals; code 0 fills up the end. ``gap_mixture`` is what
    ``churn_probability`` and ``median_gap_s`` are read from. ``fake_order``: score and probability (NaN without
    labels enough to calibrate it), (M, 2); (M, 0) of a model without that head. ``return_base``: of a model with return
    odds, those of staying away with the event itself; zeros without.
    """

    state: NDArray[np.float16]
    next_action: NDArray[np.float32]
    top_category: NDArray[np.uint32]
    top_category_probability: NDArray[np.float32]
    purchase_probability: NDArray[np.float32]
    churn_probability: NDArray[np.float32]
    median_gap_s: NDArray[np.float32]
    terms: NDArray[np.float32]
    surprisal_nats: NDArray[np.float32]
    statistics: NDArray[np.float32]
    too_predictable: NDArray[np.float32]
    anomaly_score: NDArray[np.float32]
    hidden_state: NDArray[np.float16]
    event_slot: NDArray[np.int64]
    gap_mixture: GapMixture
    fake_order: NDArray[np.float32]
    return_base: NDArray[np.float64]

    @property
    def user_vector(self) -> NDArray[np.float16]:
        """The hidden state after each event, (M, H): copied only when asked for."""
        return self.hidden_state[self.event_slot]


@dataclass(frozen=True)
class _Targets:
    """What came next, one row a state, to measure its surprise."""

    action: Tensor
    category_index: Tensor
    category_code: Tensor
    log_gap_s: Tensor
    has_gap: Tensor


class MicroBatch:
    """The working memory of one call of the step engine."""

    def __init__(
        self,
        prepared: PreparedNetwork,
        state: NDArray[np.float16],
        window_category: NDArray[np.uint32],
        columns: Columns,
    ) -> None:
        """Take the arguments of ``StepEngine.step``."""
        self.prepared, self.network, self.columns = prepared, prepared.network, columns
        self.device, self.artefact, self.tensor = prepared.device, prepared.artefact, prepared.tensor
        self.state, self.window_category = state, window_category
        self.B, self.M = len(state), len(columns["action"])

    def run(self) -> StepResult:
        """Advance the states and answer; within torch's inference mode.

        Raises:
            NotFinite: a state became NaN or infinite.
        """
        if not self.M:
            return self._nothing()
        self._lay_out()
        self._advance()
        return self._answer()

    def advanced(self) -> NDArray[np.float16]:
        """The states alone, without the answers, which cost most of a step; as of ``run``."""
        if not self.M:
            return self.state.copy()
        self._lay_out()
        self._advance()
        states: NDArray[np.float16] = self.states[torch.from_numpy(self.last).to(self.device)].cpu().numpy()
        return states

    def gaps(self) -> GapMixture:
        """What the states as they came say of the time to the next event, as the events that made them did."""
        rows, R = padded_rows(self.B), self.prepared.read_width
        read_NR = torch.zeros(rows, R, device=self.device)
        read_NR[: self.B] = torch.from_numpy(self.state[:, :R]).to(self.device)
        small_NK = torch.empty(rows, self.prepared.small_width, device=self.device)
        for tile in self.prepared.tiled(0, rows):
            self.prepared.small_heads(read_NR[tile], small_NK[tile])
        return self.network.heads.gap(small_NK)[: self.B]

    def _nothing(self) -> StepResult:
        none = np.zeros(0, np.float32)
        return StepResult(
            state=self.state.copy(),
            next_action=np.zeros((0, len(self.artefact.actions)), np.float32),
            top_category=np.zeros((0, TOP_CATEGORIES), np.uint32),
            top_category_probability=np.zeros((0, TOP_CATEGORIES), np.float32),
            purchase_probability=none,
            churn_probability=none,
            median_gap_s=none,
            terms=np.zeros((0, 3), np.float32),
            surprisal_nats=none,
            statistics=np.zeros((0, 3), np.float32),
            too_predictable=none,
            anomaly_score=none,
            hidden_state=self.state[:, self.prepared.shortcut_width : self.prepared.read_width],
            event_slot=np.zeros(0, np.int64),
            gap_mixture=GapMixture(*torch.zeros(3, COMPONENTS, 0)),
            return_base=np.zeros(0),
            fake_order=np.zeros((0, 0 if self.network.fake_order is None else 2), np.float32),
        )

    def _lay_out(self) -> None:
        """Give every event its place: waves one after another, each padded to whole tiles."""
        row, wave = self.columns["row"], self.columns["wave"]
        order = np.argsort(wave, kind="stable")
        sizes = np.bincount(wave)
        padded = np.array([padded_rows(size) for size in sizes], np.int64)
        self.wave_ends = np.cumsum(padded)
        offset = np.repeat(self.wave_ends - padded - (np.cumsum(sizes) - sizes), sizes)
        place = np.empty(self.M, np.int64)
        place[order] = np.arange(self.M) + offset
        self.P = int(self.wave_ends[-1])
        # The event before each event of the same row, as a slot: rows first, then places of events.
        by_row = np.lexsort((wave, row))
        first = wave[by_row] == 0
        before = np.empty(self.M, np.int64)
        placed = self.B + place[by_row]
        before[by_row[0]] = row[by_row[0]]
        before[by_row[1:]] = np.where(first[1:], row[by_row[1:]], placed[:-1])
        self.place, self.before, self.by_row = place, before, by_row
        self.last = np.arange(self.B)
        self.last[row[order]] = self.B + place[order]

    def _advance(self) -> None:
        """The recurrence, wave by wave; each state is cast before anything reads it."""
        trunk, S, D = self.prepared.trunk, self.artefact.state_width, self.prepared.shortcut_width
        fake_order, E, F = self.network.fake_order, self.network.trunk_end, self.network.older_end
        source = torch.zeros(self.P, dtype=torch.int64)
        source[self.place] = torch.arange(self.M)
        previous = torch.zeros(self.P, dtype=torch.int64)
        previous[self.place] = torch.from_numpy(self.before)
        self.made = made = inputs(self.columns, self.artefact.features).to(self.device)
        x = self.network.embed(made, room=trunk.room)
        states = torch.empty(self.B + self.P, S, dtype=torch.float16, device=self.device)
        states[: self.B] = torch.from_numpy(self.state).to(self.device)
        source, previous = source.to(self.device), previous.to(self.device)
        if fake_order is not None:
            quantities = fake_order.statistics.quantities(made.x_NF, self.columns)
        finite = torch.zeros((), device=self.device)
        start = 0
        for end in self.wave_ends.tolist():
            for tile in self.prepared.tiled(start, end):
                old = states.index_select(0, previous[tile])
                new = states[self.B + tile.start : self.B + tile.stop]
                x_NK = x.index_select(0, source[tile])
                direct = self.prepared.shortcut(x_NK)
                new[:, :D] = direct
                finite += direct.sum()
                finite += trunk.step(x_NK, old[:, D:E], new[:, D:E])[-1].sum()
                if fake_order is not None:
                    q, known = (part.index_select(0, source[tile]) for part in quantities)
                    action = made.action_NL[:, 0].index_select(0, source[tile])
                    fake_order.statistics.advance(q, known, action, old[:, F:], new[:, F:])
            start = end
        if not torch.isfinite(finite):
            raise NotFinite(self._describe_not_finite(states))
        self.older = self._older()
        states[self.B :, E:F] = torch.from_numpy(self.older[self.B :].astype(np.float16)).to(self.device)
        self.states = states

    def _older(self) -> NDArray[np.int64]:
        """The older categories of every state, those before the batch first, (B + P, OLDER)."""
        categories, columns = self.artefact.categories, self.columns
        older = np.zeros((self.B + self.P, OLDER), np.int64)
        # A state that is no number is found out elsewhere.
        older[: self.B] = np.nan_to_num(self.state[:, self.network.trunk_end : self.network.older_end]).clip(
            0, len(categories)
        )
        first = columns["wave"] == 0
        oldest = self.window_category[columns["row"], 0]
        in_batch = np.flatnonzero(~first)
        event_at = np.zeros(self.P, np.int64)
        event_at[self.place] = np.arange(self.M)
        oldest[in_batch] = columns["window_category"][event_at[self.before[in_batch] - self.B], 0]
        left = forgotten(columns, oldest, categories)
        entered = categories.index_of(columns["category"]).astype(np.int64)
        if not left.any() and not older.any():
            return older  # as when states are rebuilt: no window is outgrown
        order = np.argsort(columns["wave"], kind="stable")
        start = 0
        for end in np.cumsum(np.bincount(columns["wave"])).tolist():
            event = order[start:end]
            before = older[self.before[event]]
            changed = (left[event] != 0) | ((before == entered[event, None]) & (before != 0)).any(axis=1)
            if changed.any():
                at = event[changed]
                before[changed] = remember(before[changed], left[at], entered[at])
            older[self.B + self.place[event]] = before
            start = end
        return older

    def _describe_not_finite(self, states: Tensor) -> str:
        # A state row holds no infinity: it was clamped to the greatest number.
        bad = (~(states[self.B :].float().abs() < HALF_MAX)).any(dim=1).cpu().numpy()
        events = np.flatnonzero(bad[self.place])
        where = f"event {events[0]} (row {self.columns['row'][events[0]]})" if len(events) else "a state"
        return (
            f"Model {self.artefact.name}/{self.artefact.version} made a state that is not finite at {where} of "
            f"{self.M} in the micro-batch. Its weights or this input are damaged: verify the model with "
            f"`foreclick models verify`, then restart."
        )

    def _answer(self) -> StepResult:
        """Heads on every state once: before the batch (what its first event is measured by) and after each event."""
        heads, R = self.network.heads, self.prepared.read_width
        rows, events = padded_rows(self.B), padded_rows(self.M)
        slots = np.zeros(rows + events, np.int64)
        slots[: self.B], slots[rows : rows + self.M] = np.arange(self.B), self.B + self.place
        next_event = self._next_events(rows, events)
        target = self._targets(np.maximum(next_event, 0))
        codes, index = self._slots_of(slots, rows, events)
        index_SW, codes_SW = self.tensor(index), self.tensor(codes.view(np.int32))
        slots_S, held = self.tensor(slots), codes != 0
        read_SR = torch.empty(rows + events, R, device=self.device)
        small_SK = torch.empty(rows + events, self.prepared.small_width, device=self.device)
        for tile in self.prepared.tiled(0, rows + events):
            read_SR[tile] = self.states.index_select(0, slots_S[tile])[:, :R]
            self.prepared.small_heads(read_SR[tile], small_SK[tile])
        any_held = held.any(axis=1)
        out = heads.read(small_SK, self.tensor(held), self.tensor(any_held))
        log_action = torch.log_softmax(out.action_NA, dim=1)

        named = torch.empty(rows + events, device=self.device)
        rest_S = 1 - out.share_N
        column = self._columns_of(index[rows:], codes[rows:])
        best = np.empty((events, TOP_CATEGORIES), np.int32)
        for part, tile in self._parts(rows, events):
            logits = self.prepared.category_logits(read_SR[tile])
            share, rest = out.share_N[tile], rest_S[tile]
            vocabulary, pointer = heads.mix(logits, out.slot_NW[tile], index_SW[tile])
            by_vocabulary = vocabulary.gather(1, target.category_index[tile, None])[:, 0]
            pointed = codes_SW[tile] == target.category_code[tile, None]
            named[tile] = rest * by_vocabulary + share * torch.where(pointed, pointer, 0.0).sum(dim=1)
            if part is not None:
                vocabulary.mul_((rest * _MICRO)[:, None])
                pointer.mul_((share * _MICRO)[:, None])
                best[part] = self._best(vocabulary, pointer, column[part])
        # 1e-9 bounds the surprise of one category at 20.7 nats.
        terms = (
            -log_action.gather(1, target.action[:, None])[:, 0],
            -torch.log(named.clamp_min_(1e-9)) * (target.category_code != 0),
            -out.gap.log_likelihood(target.log_gap_s) * target.has_gap,
        )
        gap = out.gap.since(rows)
        answers = (
            torch.sigmoid(out.purchase_N[rows:]),
            gap.survival(self.prepared.log_horizon),
            torch.exp(gap.median(self.prepared.log_longest_gap)),
        )
        return self._result(
            next_event,
            torch.stack(terms),
            torch.stack(answers),
            torch.exp(log_action)[rows:],
            self._read(best[: self.M], codes[rows : rows + self.M, OLDER:]),
            gap,
        )

    def _fake_order(self) -> NDArray[np.float32]:
        """Score and probability after each event, (M, 2); (M, 0) without the head."""
        head, calibration = self.network.fake_order, self.prepared.calibration
        if head is None:
            return np.zeros((self.M, 0), np.float32)
        events = padded_rows(self.M)
        slots = np.zeros(events, np.int64)
        slots[: self.M] = self.B + self.place
        slots_S, log_odds = self.tensor(slots), torch.empty(events, device=self.device)
        for tile in self.prepared.tiled(0, events):
            state = self.states.index_select(0, slots_S[tile])[:, self.network.older_end :]
            log_odds[tile] = head.forest(
                head.inputs(self.made.x_NF[tile], self.made.action_NL[tile, 0], state)
            )
        score = torch.sigmoid(log_odds)
        probability = torch.full_like(score, torch.nan)
        if calibration is not None:
            probability = torch.sigmoid(log_odds * calibration.slope + calibration.intercept)
        both: NDArray[np.float32] = torch.stack([score, probability], dim=1).cpu().numpy()[: self.M]
        return both

    def _slots_of(
        self, slots: NDArray[np.int64], rows: int, events: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
        """Codes and vocabulary indices of what the pointer may point at: older categories, then the window."""
        categories = self.artefact.categories
        codes = np.zeros((rows + events, SLOTS), np.uint32)
        window = codes[:, OLDER:]
        window[: self.B], window[rows : rows + self.M] = self.window_category, self.columns["window_category"]
        index = np.empty(codes.shape, np.int32)
        index[:, OLDER:] = categories.index_of(window)
        index[:, :OLDER] = self.older[slots]
        codes[:, :OLDER] = np.append(np.uint32(0), categories.codes)[index[:, :OLDER]]
        return codes, index

    def _parts(self, rows: int, events: int) -> Iterator[tuple[slice | None, slice]]:
        """Tiles of states: of rows (no answer wanted), then of events, with their place among the events."""
        for tile in self.prepared.tiled(0, rows):
            yield None, tile
        for part in self.prepared.tiled(0, events):
            yield part, slice(rows + part.start, rows + part.stop)

    def _next_events(self, rows: int, events: int) -> NDArray[np.int64]:
        """The event that follows each state within the batch, -1 for none."""
        following = np.full(rows + events, -1)
        first = self.columns["wave"][self.by_row] == 0
        following[self.columns["row"][self.by_row[first]]] = self.by_row[first]
        later = np.flatnonzero(~first)
        following[rows + self.by_row[later - 1]] = self.by_row[later]
        return following

    def _targets(self, event: NDArray[np.int64]) -> _Targets:
        code = self.columns["category"].take(event)
        gap_ms = self.columns["gap_ms"].take(event)
        return _Targets(
            action=self.tensor(self.columns["action"].take(event).astype(np.int32)),
            category_index=self.tensor(self.artefact.categories.index_of(code)),
            category_code=self.tensor(code.view(np.int32)),
            log_gap_s=self.tensor(gap_ms.astype(np.float32)).mul_(1e-3).clamp_min_(1.0).log_(),
            has_gap=self.tensor(gap_ms >= 0),
        )

    def _columns_of(self, index: NDArray[np.int32], codes: NDArray[np.uint32]) -> Tensor:
        """Where each slot's probability belongs: its category's column, or one of 32 more for the unseen.

        Equal codes outside the vocabulary share the column of their first slot.
        """
        window, unseen = codes[:, OLDER:], (index[:, OLDER:] == 0) & (codes[:, OLDER:] != 0)
        odd = np.flatnonzero(np.packbits(unseen).view(np.uint32))  # 32 flags a row at once
        if not len(odd):
            return self.tensor(index)
        column = index.copy()
        same = window[odd, :, None] == window[odd, None, :]
        first = 1 + len(self.artefact.categories) + same.argmax(axis=2)
        column[odd, OLDER:] = np.where(unseen[odd], first, index[odd, OLDER:])
        return self.tensor(column)

    def _best(self, vocabulary: Tensor, pointer: Tensor, column_NW: Tensor) -> NDArray[np.int32]:
        """The 20 likeliest columns of each row, descending, each packed with its probability.

        Probability (6 decimals) above, column below: one vectorised sort of integers ranks a row and breaks ties
        the same way everywhere; torch.topk takes three times as long. Probabilities come in millionths; both
        arguments are used up.
        """
        p = vocabulary.scatter_add_(1, column_NW, pointer)
        p[:, 0] = 0
        micro = p.add_(_ROUNDER).view(torch.int32)
        keys = micro.bitwise_left_shift_(KEY_BITS).add_(self.prepared.rank_V).cpu().numpy()
        keys.sort(axis=1)
        return keys[:, : -TOP_CATEGORIES - 1 : -1]

    def _read(
        self, best: NDArray[np.int32], codes: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Category codes and probabilities out of what ``_best`` packed; ``codes`` of the window."""
        micro = best >> KEY_BITS
        place = (len(self.prepared.rank_V) - 1) - (best & ((1 << KEY_BITS) - 1))
        known = 1 + len(self.artefact.categories)
        code = self.prepared.code_by_column.take(place)
        odd, at = np.nonzero((place >= known) & (micro > 0))
        code[odd, at] = codes[odd, place[odd, at] - known]
        code[micro == 0] = 0
        return code, micro.astype(np.float32) / np.float32(_MICRO)

    def _result(
        self,
        next_event: NDArray[np.int64],
        terms_3S: Tensor,
        answers_3M: Tensor,
        next_action: Tensor,
        top: tuple[NDArray[np.uint32], NDArray[np.float32]],
        gap: GapMixture,
    ) -> StepResult:
        M = self.M
        measured = np.flatnonzero(next_event >= 0)
        terms = np.empty((M, 3), np.float32)
        terms[next_event[measured]] = terms_3S.cpu().numpy()[:, measured].T
        surprisal = terms[:, 0] + terms[:, 1] + terms[:, 2]
        purchase, churn, median = answers_3M.cpu().numpy()[:, :M]
        odds, base = self.artefact.return_odds, np.zeros(M)
        if odds is not None:
            base = odds.bases(user_numbers(self.columns, self.artefact.purchase_code))
            churn = expit(base).astype(np.float32)
        statistics = predictability_statistics(self.columns)
        anomaly = self.artefact.reference.judge(self.columns["life_events"], surprisal, statistics)
        states = self.states.cpu().numpy()
        return StepResult(
            state=states[self.last],
            next_action=next_action.cpu().numpy()[:M],
            top_category=top[0],
            top_category_probability=top[1],
            purchase_probability=purchase,
            churn_probability=churn,
            median_gap_s=median,
            terms=terms,
            surprisal_nats=surprisal,
            statistics=statistics,
            too_predictable=anomaly.too_predictable,
            anomaly_score=anomaly.score,
            hidden_state=states[:, self.prepared.shortcut_width : self.prepared.read_width],
            event_slot=self.B + self.place,
            gap_mixture=gap[:M],
            fake_order=self._fake_order(),
            return_base=base,
        )
