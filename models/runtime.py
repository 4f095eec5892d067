"""One micro-batch of events through the network: waves, tiles, predictions.

A pure function of arrays; it knows no Kafka and keeps nothing between calls. A micro-batch that holds several events
of one user runs in waves: first events of all users, then second ones. Only the recurrence needs waves; features and
heads run over all events at once.

Bits: a row's result must not depend on its company. Matrix products of other row counts and the remainders of
vectorised functions round differently, so floating point runs on tiles of fixed row counts, all multiples of 64,
padded with rows that nobody reads; the engine measures at start which tile sizes agree bit for bit here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anomaly import predictability_statistics
from models.columns import WINDOW, Columns
from models.errors import ForeclickError, NotFinite
from models.features import TILE_ROWS, inputs, padded_rows
from models.registry import Artefact

TOP_CATEGORIES = 20
HALF_MAX = 65504.0
_TILE_SIZES = (1024, 256, TILE_ROWS)
_MICRO = 1_000_000
# glibc's mallopt: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
_TRIM, _MMAP = -1, -3
# 2**23: added to a float32 below it, the sum's last 23 bits are the rounded number itself.
_ROUNDER = 8_388_608.0
_KEY_BITS = 11


@dataclass(frozen=True)
class StepResult:
    """Predictions made after each of M events, in the order of the events; B users' new states.

    ``terms``: nats of action, category and gap of this event under the prediction made before it; the surprisal is
    their sum. A first event has no gap term, an event without category no category term: they are 0.
    Category probabilities are rounded to 6 decimals; code 0 fills up the end.
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

    @property
    def user_vector(self) -> NDArray[np.float16]:
        """The hidden state after each event, (M, H): copied only when asked for."""
        return self.hidden_state[self.event_slot]


@dataclass(frozen=True)
class _Targets:
    """What came next, one row a state, to measure its surprise: all int64 or float32, padded."""

    action: Tensor
    category_index: Tensor
    category_code: Tensor
    log_gap_s: Tensor
    has_gap: Tensor


def _keep_freed_memory() -> None:
    """Let malloc keep up to 256 MiB instead of returning them to the system after every micro-batch.

    A step's arrays are a few MiB each; fetching their pages anew cost a quarter of the step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only; elsewhere it is only slower
    if mallopt is not None:
        mallopt(_TRIM, 256 << 20)
        mallopt(_MMAP, 32 << 20)  # the most that glibc takes


class StepEngine:
    """Advances users' states by the events of a micro-batch and says what comes next.

    Call ``step`` from one thread only: it limits torch to ``threads`` threads there. It holds the interpreter lock
    only between array operations.
    """

    def __init__(self, artefact: Artefact, device: str = "auto", threads: int = 1) -> None:
        """Prepare the network of an artefact.

        Args:
            artefact: of ``models.registry.load_artefact``.
            device: ``auto`` takes CUDA when there is one.
            threads: of torch's own pool, within this engine's thread.
        """
        self.artefact = artefact
        self.threads = threads
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device_name = device
        self.degraded = False
        _keep_freed_memory()
        self._use(device)

    def _use(self, device: str) -> None:
        self.device_name = device
        self.network = self.artefact.network.to(device).eval()
        columns = 1 + len(self.artefact.categories) + WINDOW
        if columns >= 1 << _KEY_BITS:
            raise ForeclickError(
                f"Model {self.artefact.name}/{self.artefact.version} has {len(self.artefact.categories)} categories, "
                f"the engine ranks at most {(1 << _KEY_BITS) - WINDOW - 2}. Train it with fewer."
            )
        # The vocabulary's logits get 32 more columns that are never likely: the pointer's share of categories
        # outside the vocabulary is added there, in place.
        category = self.network.heads.category
        self._category_weight = torch.zeros(category.in_features, columns, device=device)
        self._category_weight[:, :-WINDOW] = category.weight.detach().t()
        self._category_bias = torch.full((columns,), -1e9, device=device)
        self._category_bias[:-WINDOW] = category.bias.detach()
        self._rank = torch.arange(columns - 1, -1, -1, dtype=torch.int32, device=device)
        self._log_horizon = log(self.artefact.churn_horizon_s)
        with torch.inference_mode():
            self._tiles = self._agreeing_tiles()

    def _agreeing_tiles(self) -> tuple[int, ...]:
        """The tile sizes whose matrix products equal those of 64 rows bit for bit on this machine."""
        torch.set_num_threads(self.threads)
        generator = torch.Generator().manual_seed(1)
        layer = self.network.trunk
        rows = torch.randn(_TILE_SIZES[0], layer.weight_ih.shape[1], generator=generator).to(self.device_name)
        state = torch.randn(_TILE_SIZES[0], layer.state_width, generator=generator).to(self.device_name)

        def results(size: int) -> Tensor:
            tiles = range(0, len(rows), size)
            after = torch.cat([layer.step(rows[t : t + size], state[t : t + size]) for t in tiles])
            hidden = after[:, : layer.hidden].contiguous()
            small = torch.cat([self._small_heads(hidden[t : t + size]) for t in tiles])
            category = torch.cat([self._category_logits(hidden[t : t + size]) for t in tiles])
            return torch.cat([after, small, category], dim=1)

        small = results(TILE_ROWS)
        return tuple(size for size in _TILE_SIZES if torch.equal(results(size), small))

    def _small_heads(self, hidden_NH: Tensor, out: Tensor | None = None) -> Tensor:
        small = self.network.heads.small
        return torch.addmm(small.bias, hidden_NH, small.weight.t(), out=out)

    def _category_logits(self, hidden_NH: Tensor) -> Tensor:
        return torch.addmm(self._category_bias, hidden_NH, self._category_weight)

    def _tiled(self, start: int, stop: int) -> Iterator[slice]:
        """Cut whole tiles out of [start, stop), the largest first; the length is a multiple of 64."""
        for size in self._tiles:
            while stop - start >= size:
                yield slice(start, start + size)
                start += size

    def step(self, state: NDArray[np.float16], window_category: NDArray[np.uint32], columns: Columns) -> StepResult:
        """Advance B users by the M events of a micro-batch.

        Args:
            state: (B, S), of each row before the batch; zeros for a new user. Left unchanged.
            window_category: (B, 32), category codes of each row's window before the batch.
            columns: as ``models.columns.LAYOUT``, M events; ``row`` indexes the B rows, ``wave`` is the event's
                rank within its row.

        Raises:
            NotFinite: a state became NaN or infinite.
        """
        try:
            return self._step(state, window_category, columns)
        except torch.AcceleratorError:
            if self.device_name == "cpu":
                raise
            self.degraded = True
            self._use("cpu")
            return self._step(state, window_category, columns)

    def _step(self, state: NDArray[np.float16], window_category: NDArray[np.uint32], columns: Columns) -> StepResult:
        if not len(columns["action"]):
            return self._nothing(state)
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return _Step(self, state, window_category, columns).run()

    def _nothing(self, state: NDArray[np.float16]) -> StepResult:
        none = np.zeros(0, np.float32)
        width = {"next_action": len(self.artefact.actions), "terms": 3, "statistics": 3,
                 "top_category_probability": TOP_CATEGORIES}  # fmt: skip
        floats = {field.name: none.reshape(0, *filter(None, [width.get(field.name)])) for field in fields(StepResult)}
        return StepResult(**floats | {
            "state": state.copy(),
            "top_category": np.zeros((0, TOP_CATEGORIES), np.uint32),
            "hidden_state": state[:, : self.network.trunk.hidden],
            "event_slot": np.zeros(0, np.int64),
        })  # fmt: skip


class _Step:
    """The working memory of one call."""

    def __init__(
        self, engine: StepEngine, state: NDArray[np.float16], window_category: NDArray[np.uint32], columns: Columns
    ) -> None:
        self.engine, self.network, self.columns = engine, engine.network, columns
        self.device = engine.device_name
        self.artefact = engine.artefact
        self.state, self.window_category = state, window_category
        self.B, self.M = len(state), len(columns["action"])

    def run(self) -> StepResult:
        self._lay_out()
        self._advance()
        return self._answer()

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
        S = self.network.trunk.state_width
        source = torch.zeros(self.P, dtype=torch.int64)
        source[self.place] = torch.arange(self.M)
        previous = torch.zeros(self.P, dtype=torch.int64)
        previous[self.place] = torch.from_numpy(self.before)
        x = self.network.embed(inputs(self.columns, self.artefact.features).to(self.device))
        states = torch.empty(self.B + self.P, S, dtype=torch.float16, device=self.device)
        states[: self.B] = torch.from_numpy(self.state).to(self.device)
        source, previous = source.to(self.device), previous.to(self.device)
        finite = torch.zeros((), device=self.device)
        start = 0
        for end in self.wave_ends.tolist():
            for tile in self.engine._tiled(start, end):
                old = states.index_select(0, previous[tile]).float()
                new = self.network.trunk.step(x.index_select(0, source[tile]), old)
                finite += new.sum()
                states[self.B + tile.start : self.B + tile.stop] = new.clamp_(-HALF_MAX, HALF_MAX)
            start = end
        if not torch.isfinite(finite):
            raise NotFinite(self._describe_not_finite(states))
        self.states = states

    def _describe_not_finite(self, states: Tensor) -> str:
        bad = torch.isnan(states[self.B :].float()).any(dim=1).cpu().numpy()
        events = np.flatnonzero(bad[self.place])
        where = f"event {events[0]} (row {self.columns['row'][events[0]]})" if len(events) else "a state"
        return (
            f"Model {self.artefact.name}/{self.artefact.version} made a state that is not finite at {where} of "
            f"{self.M} in the micro-batch. Its weights or this input are damaged: verify the model with "
            f"`foreclick models verify`, then restart."
        )

    def _answer(self) -> StepResult:
        """Heads on every state once: before the batch (what its first event is measured by) and after each event."""
        columns, heads, H = self.columns, self.network.heads, self.network.trunk.hidden
        rows, events = padded_rows(self.B), padded_rows(self.M)
        slots = np.zeros(rows + events, np.int64)
        slots[: self.B], slots[rows : rows + self.M] = np.arange(self.B), self.B + self.place
        next_event = self._next_events(rows, events)
        target = self._targets(np.maximum(next_event, 0))
        codes = np.zeros((rows + events, WINDOW), np.uint32)
        codes[: self.B], codes[rows : rows + self.M] = self.window_category, columns["window_category"]
        index = self.artefact.categories.index_of(codes)
        index_SW, codes_SW = self._tensor(index), self._tensor(codes.view(np.int32))
        slots_S, held = self._tensor(slots), codes != 0
        hidden_SH = torch.empty(rows + events, H, device=self.device)
        small_SK = torch.empty(rows + events, heads.small.out_features, device=self.device)
        for tile in self.engine._tiled(0, rows + events):
            hidden_SH[tile] = self.states.index_select(0, slots_S[tile])[:, :H]
            self.engine._small_heads(hidden_SH[tile], out=small_SK[tile])
        any_held = np.packbits(held).view(np.uint32) != 0  # 32 flags a row at once
        out = heads.read(small_SK, self._tensor(held), self._tensor(any_held))
        log_action = torch.log_softmax(out.action_NA, dim=1)

        named = torch.empty(rows + events, device=self.device)
        top_code = np.empty((events, TOP_CATEGORIES), np.uint32)
        top_probability = np.empty((events, TOP_CATEGORIES), np.float32)
        for part, tile in self._parts(rows, events):
            logits = self.engine._category_logits(hidden_SH[tile])
            vocabulary, pointer = heads.mix(logits, out.slot_NW[tile], out.share_N[tile], index_SW[tile])
            by_vocabulary = vocabulary.gather(1, target.category_index[tile, None])[:, 0]
            pointed = codes_SW[tile] == target.category_code[tile, None]
            named[tile] = by_vocabulary + torch.where(pointed, pointer, 0.0).sum(dim=1)
            if part is not None:
                top_code[part], top_probability[part] = self._top(
                    vocabulary, pointer, index_SW[tile], index[tile], codes[tile]
                )
        # 1e-9 bounds the surprise of one category at 20.7 nats.
        terms = (
            -log_action.gather(1, target.action[:, None])[:, 0],
            -torch.log(named.clamp_min_(1e-9)) * (target.category_code != 0),
            -out.gap.log_likelihood(target.log_gap_s) * target.has_gap,
        )
        gap = out.gap.since(rows)
        answers = (
            torch.sigmoid(out.purchase_N[rows:]),
            gap.survival(self.engine._log_horizon),
            torch.exp(gap.median()),
        )
        return self._result(
            next_event,
            torch.stack(terms),
            torch.stack(answers),
            torch.exp(log_action)[rows:],
            top_code,
            top_probability,
        )

    def _parts(self, rows: int, events: int) -> Iterator[tuple[slice | None, slice]]:
        """Tiles of states: of rows (no answer wanted), then of events, with their place among the events."""
        for tile in self.engine._tiled(0, rows):
            yield None, tile
        for part in self.engine._tiled(0, events):
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
            action=self._tensor(self.columns["action"].take(event).astype(np.int64)),
            category_index=self._tensor(self.artefact.categories.index_of(code)),
            category_code=self._tensor(code.view(np.int32)),
            log_gap_s=self._tensor(gap_ms.astype(np.float32)).mul_(1e-3).clamp_min_(1.0).log_(),
            has_gap=self._tensor(gap_ms >= 0),
        )

    def _top(
        self, vocabulary: Tensor, pointer: Tensor, index_NW: Tensor, index: NDArray, codes: NDArray
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Codes and probabilities of the 20 likeliest categories, descending.

        Probability (6 decimals) and column are packed into one integer, so that one vectorised sort of integers
        ranks a row and breaks ties the same way everywhere; torch.topk takes three times as long.
        """
        columns = vocabulary.shape[1]
        V1 = columns - WINDOW
        column = index_NW
        unseen = (index == 0) & (codes != 0)
        odd = np.flatnonzero(unseen.any(axis=1))
        if len(odd):
            # Equal codes outside the vocabulary share the column of their first slot.
            same = codes[odd, :, None] == codes[odd, None, :]
            own = index.copy()
            own[odd] = np.where(unseen[odd], V1 + same.argmax(axis=2), index[odd])
            column = self._tensor(own)
        p = vocabulary.scatter_add_(1, column, pointer)
        p[:, 0] = 0
        micro = p.mul_(_MICRO).add_(_ROUNDER).view(torch.int32)
        keys = micro.bitwise_left_shift_(_KEY_BITS).add_(self.engine._rank).cpu().numpy()
        keys.sort(axis=1)
        best = keys[:, : -TOP_CATEGORIES - 1 : -1]
        probability = (best >> _KEY_BITS).astype(np.float32) / np.float32(_MICRO)
        place = (columns - 1) - (best & ((1 << _KEY_BITS) - 1)).astype(np.int64)
        code = self.artefact.categories.code_at(np.where(place < V1, place, 0))
        if len(odd):
            slot = np.maximum(place - V1, 0)
            code = np.where(place < V1, code, np.take_along_axis(codes, slot, axis=1))
        code[probability == 0] = 0
        probability[code == 0] = 0
        return code, probability

    def _result(
        self,
        next_event: NDArray[np.int64],
        terms_3S: Tensor,
        answers_3M: Tensor,
        next_action: Tensor,
        top_code: NDArray[np.uint32],
        top_probability: NDArray[np.float32],
    ) -> StepResult:
        M = self.M
        measured = np.flatnonzero(next_event >= 0)
        terms = np.empty((M, 3), np.float32)
        terms[next_event[measured]] = terms_3S.cpu().numpy()[:, measured].T
        surprisal = terms[:, 0] + terms[:, 1] + terms[:, 2]
        purchase, churn, median = answers_3M.cpu().numpy()[:, :M]
        statistics = predictability_statistics(self.columns)
        anomaly = self.artefact.reference.judge(self.columns["life_events"], surprisal, statistics)
        states = self.states.cpu().numpy()
        return StepResult(
            state=states[self.last],
            next_action=next_action.cpu().numpy()[:M],
            top_category=top_code[:M],
            top_category_probability=top_probability[:M],
            purchase_probability=purchase,
            churn_probability=churn,
            median_gap_s=median,
            terms=terms,
            surprisal_nats=surprisal,
            statistics=statistics,
            too_predictable=anomaly.too_predictable,
            anomaly_score=anomaly.score,
            hidden_state=states[:, : self.network.trunk.hidden],
            event_slot=self.B + self.place,
        )

    def _tensor(self, values: NDArray) -> Tensor:
        return torch.from_numpy(values).to(self.device)
