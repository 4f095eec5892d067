"""The JSON values of predictions, made from arrays.

Everything that varies becomes text first (``stream.rendering``), for the whole micro-batch; then the values are laid
out from their ends to their beginnings (``stream.canvas``). The bytes of one prediction depend on that event alone,
never on the others in the micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isnan
from typing import Any, Final, Protocol

import numpy as np
from msgspec.json import encode
from numpy.typing import NDArray

from stream.canvas import Canvas, Template, blocks
from stream.errors import BrokenInvariant
from stream.rendering import (
    DECIMAL_WIDTH,
    NUMBER_WIDTH,
    Fragments,
    JsonTexts,
    NameTable,
    micro_text,
    number_texts,
)

__all__ = ["MAX_GAP_S", "MAX_NATS", "PREDICTION_SCHEMA", "PredictionValues", "Scores"]

PREDICTION_SCHEMA: Final = "foreclick.prediction.v1"
MAX_GAP_S: Final = 3_155_760_000  # 100 years: a median beyond it says "never" just as well, and stays finite
MAX_NATS: Final = 1_000_000  # a term beyond it is absurd but finite; a limit keeps its millionths exact

_ROWS = 512  # laid out at once: their text, about 1 MiB, then stays in the core's cache
_REASONS = ("unlikely_action", "unlikely_category", "unlikely_gap")  # the columns of Scores.terms
_CATEGORY_KEY, _PROBABILITY_KEY = b'{"category":', b',"probability":'
_TIE_BREAK = np.array([[2], [1], [0]])
_NO_TERM = -(2**62)  # below all others


class Scores(Protocol):
    """What the renderer reads of ``models.runtime.StepResult``: M events, A actions, K categories."""

    next_action: NDArray[np.float32]
    top_category: NDArray[np.uint32]
    top_category_probability: NDArray[np.float32]
    purchase_probability: NDArray[np.float32]
    churn_probability: NDArray[np.float32]
    median_gap_s: NDArray[np.float32]
    terms: NDArray[np.float32]
    too_predictable: NDArray[np.float32]
    anomaly_score: NDArray[np.float32]
    fake_order: NDArray[np.float32]


@dataclass(slots=True)
class _Fragments:
    """What varies in M values, as text; of each pair the second says how long the text in a block is."""

    users: JsonTexts
    events: JsonTexts
    integers: Fragments  # (5, M): event time, partition, offset, session index, session position
    heads: NDArray[np.uint64]  # (A + 4, M)
    names: Fragments  # (M, K), the named categories first
    words: NDArray[np.uint64]  # (M, K), their probabilities
    last_word: NDArray[np.uint64]  # (M,), the probability of the last one that is named
    chances_lengths: NDArray[np.int64]
    numbers: Fragments  # (5, M): nats of the reasons, surprisal, median gap
    reasons: Fragments  # (3, M), most nats first
    end_lengths: NDArray[np.int64]


class PredictionValues:
    """Renders values of the predictions of a source topic; arguments as of ``PredictionRenderer``."""

    def __init__(
        self,
        model_name: str,
        model_version: str,
        actions: tuple[str, ...],
        category_names: Mapping[int, str],
        *,
        topic: str,
        topic_id: str,
        churn_horizon_s: int,
    ) -> None:
        self._topic, self._topic_id = topic, topic_id
        self._names = NameTable(category_names)
        self._canvas = Canvas(0, 1)
        self._leads: NDArray[np.void]
        self._lead_words: NDArray[np.uint64]
        self._n_actions = len(actions)

        # The constant text in the order of the value.
        model = b'{"name":%b,"version":%b}' % (encode(model_name), encode(model_version))
        action_keys = [b"%b%b:" % (b"," if i else b"", encode(name)) for i, name in enumerate(actions)]
        action_parts = chain.from_iterable((key, None) for key in action_keys)
        horizon = b',"churn_horizon_s":%d,"median_gap_s":' % churn_horizon_s
        self._before_user = np.void(b'{"schema":"%b","user_id":"' % PREDICTION_SCHEMA.encode())
        self._before_event = np.void(b'","event_id":"')
        self._before_time = np.void(b'","event_time_ms":')
        self._before_partition = np.void(b',"source":{"topic":%b,"partition":' % encode(topic))
        self._before_offset = np.void(b',"offset":')
        self._before_index = np.void(b'},"session":{"index":')
        self._before_position = np.void(b',"position":')
        self._actions = Template(
            _ROWS, [b'},"model":%b,"next_action":{' % model, *action_parts, b'},"next_category":[']
        )
        chances = [
            _PROBABILITY_KEY,
            None,
            b'}],"purchase_probability":',
            None,
            b',"churn_probability":',
            None,
        ]
        self._chances = Template(_ROWS, [*chances, horizon])
        self._score = Template(_ROWS, [b',"anomaly":{"score":', None, b',"surprisal_nats":'])
        self._too_predictable = Template(_ROWS, [b',"too_predictable":', None, b',"reasons":['])
        codes = [b'},{"code":"%b","nats":' % code.encode() for code in _REASONS]
        reason_width = max(map(len, codes))
        reason_cells = np.frombuffer(b"".join(code.rjust(reason_width) for code in codes), "u1")
        self._reason_blocks = blocks(reason_cells.reshape(-1, reason_width))
        self._reason_lengths = np.array([len(code) for code in codes])
        self._end = np.void(b'}]},"fake_order":null,"user_vector":null}')

        constants = (
            self._before_user,
            self._before_event,
            self._before_time,
            self._before_partition,
            self._before_offset,
            self._before_index,
            self._before_position,
            self._end,
        )
        templates = (self._actions, self._chances, self._score, self._too_predictable)
        self._fixed_width = (
            sum(constant.itemsize for constant in constants)
            + sum(template.width for template in templates)
            + len(_REASONS) * reason_width
            + (5 + len(_REASONS) + 2) * NUMBER_WIDTH
            + 2 * JsonTexts.MAX_LENGTH
        )

    def render(
        self,
        user_ids: Sequence[str],
        event_ids: Sequence[str | None],
        event_time_ms: NDArray[np.int64],
        partitions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        session_index: NDArray[np.int32],
        session_position: NDArray[np.int32],
        result: Scores,
        names: Mapping[int, str],
        user_vectors: NDArray[np.float16] | None = None,
        orders: NDArray[np.bool_] | None = None,
    ) -> list[bytes]:
        """The values of M events; arguments and errors as of ``PredictionRenderer.render``."""
        if not len(user_ids):
            return []
        topic_id = self._topic_id
        positions = zip(event_ids, partitions.tolist(), offsets.tolist(), strict=True)
        users = JsonTexts(user_ids)
        events = JsonTexts([event or f"{topic_id}/{part}/{offset}" for event, part, offset in positions])
        integers = np.empty((5, len(user_ids)), np.int64)
        integers[:] = event_time_ms, partitions, offsets, session_index, session_position
        fragments = self._fragments(users, events, integers, result, names)
        values: list[bytes] = []
        for start in range(0, len(user_ids), _ROWS):
            values += self._lay_out(fragments, slice(start, start + _ROWS))

        for texts, before in ((events, self._before_event), (users, self._before_user)):
            for i, text in texts.long.items():
                values[i] = values[i].replace(before.tobytes(), before.tobytes() + text, 1)
        if result.fake_order.shape[1]:
            values = self._with_fake_order(values, result.fake_order, integers[1:3])
        elif orders is not None:
            end = b'null,"user_vector":null}'
            for i in np.flatnonzero(orders).tolist():
                score = float(result.anomaly_score[i]) + 0.0  # of -0.0 it makes 0.0
                values[i] = (
                    values[i][: -len(end)] + b'{"score":%.6f,"probability":null},"user_vector":null}' % score
                )
        if user_vectors is None:
            return values
        self._check(
            np.isfinite(user_vectors), user_vectors, ["user_vector"] * user_vectors.shape[1], integers[1:3]
        )
        # Adding 0 makes a plain 0.0 of -0.0.
        vectors = (np.round(user_vectors.astype(np.float64), 4) + 0.0).tolist()
        cut = -len(b"null}")
        return [
            b"%b%b}" % (value[:cut], encode(vector)) for value, vector in zip(values, vectors, strict=True)
        ]

    def _with_fake_order(
        self, values: list[bytes], both: NDArray[np.float32], places: NDArray[np.int64]
    ) -> list[bytes]:
        """The values with score and probability; of a probability NaN says that there is none yet."""
        fields = ["fake_order.score", "fake_order.probability"]
        told = np.where(np.isnan(both), [[np.nan, 0.0]], both)
        self._check((told >= 0) & (told <= 1), both, fields, places)
        end = b'null,"user_vector":null}'
        texts = (
            b'{"score":%.6f,"probability":%b},"user_vector":null}'
            % (score, b"null" if isnan(probability) else b"%.6f" % probability)
            for score, probability in both.tolist()
        )
        return [value[: -len(end)] + text for value, text in zip(values, texts, strict=True)]

    def _fragments(
        self,
        users: JsonTexts,
        events: JsonTexts,
        integers: NDArray[np.int64],
        result: Scores,
        names: Mapping[int, str],
    ) -> _Fragments:
        """Everything that varies, as text; integers is (5, M)."""
        places = integers[1:3]
        heads, words = self._probabilities(result, places)
        codes = result.top_category
        rows = self._names.rows(codes.ravel(), names).reshape(codes.shape)
        named = rows != 0
        if named.all():
            last_word = words[:, -1]
        else:
            named_first = np.argsort(~named, axis=1, kind="stable")
            rows = np.take_along_axis(rows, named_first, axis=1)
            words = np.take_along_axis(words, named_first, axis=1)
            last_word = words[np.arange(len(words)), named.sum(axis=1) - 1]

        applies, order, nats = self._reasons(result.terms, places)
        micros = np.empty((len(_REASONS) + 2, places.shape[1]), np.int64)
        micros[:-2] = nats
        nats.sum(axis=0, out=micros[-2])
        micros[-1] = self._gap_micros(result.median_gap_s, places)
        texts_of_integers, (number_blocks, number_lengths) = number_texts(integers, micros)
        number_lengths[:-2] *= applies
        reason_lengths = self._reason_lengths[order] * applies
        # The first closes no reason before it and follows no comma; the end closes one only if there is one.
        reason_lengths[0] -= len(b"},") * applies[0]
        # Where no category is named, there is no last probability to close.
        unclosed = len(_PROBABILITY_KEY) + DECIMAL_WIDTH + len(b"}")
        return _Fragments(
            users=users,
            events=events,
            integers=texts_of_integers,
            heads=heads,
            names=self._names.texts(rows),
            words=words,
            last_word=last_word,
            chances_lengths=self._chances.width - unclosed * ~named.any(axis=1),
            numbers=(number_blocks, number_lengths),
            reasons=(self._reason_blocks[order], reason_lengths),
            end_lengths=self._end.itemsize - ~applies[0],
        )

    def _lay_out(self, of: _Fragments, rows: slice) -> list[bytes]:
        """The values of at most _ROWS rows, from their ends to their beginnings."""
        n_actions = self._n_actions
        words = of.words[rows]
        canvas = self._canvas_for(words.shape[1])
        canvas.begin(len(words))

        def prepend(fragments: Fragments, i: int) -> None:
            canvas.prepend(fragments[0][i, rows], fragments[1][i, rows])

        canvas.prepend(self._end, of.end_lengths[rows])
        for k in reversed(range(len(_REASONS))):
            prepend(of.numbers, k)
            prepend(of.reasons, k)
        canvas.prepend(self._too_predictable.filled(of.heads[n_actions + 3, rows]))
        prepend(of.numbers, 3)
        canvas.prepend(self._score.filled(of.heads[n_actions + 2, rows]))
        prepend(of.numbers, 4)
        chances = (of.last_word[rows], *of.heads[n_actions : n_actions + 2, rows])
        canvas.prepend(self._chances.filled(*chances), of.chances_lengths[rows])
        self._lead_words[: len(words)] = words[:, :-1]
        name_blocks, name_lengths = of.names
        canvas.prepend_list(
            name_blocks[rows], name_lengths[rows], self._leads[: len(words)], len(_CATEGORY_KEY)
        )
        canvas.prepend(self._actions.filled(*of.heads[:n_actions, rows]))
        befores = (
            self._before_time,
            self._before_partition,
            self._before_offset,
            self._before_index,
            self._before_position,
        )
        for i in reversed(range(len(befores))):
            prepend(of.integers, i)
            canvas.prepend(befores[i])
        for texts, before in ((of.events, self._before_event), (of.users, self._before_user)):
            canvas.prepend_texts(texts.source, texts.ends[rows], texts.lengths[rows])
            canvas.prepend(before)
        return canvas.texts()

    def _canvas_for(self, n_categories: int) -> Canvas:
        """The canvas, made anew when a name is longer than any before; and the leads with the same number of rows."""
        lead = _PROBABILITY_KEY + b"0.000000}," + _CATEGORY_KEY
        width = self._fixed_width + n_categories * (self._names.width + len(lead))
        if self._canvas.width != width:
            self._canvas = Canvas(_ROWS, width)
            cells = np.empty((_ROWS, n_categories, len(lead)), "u1")
            cells[:] = np.frombuffer(lead, "u1")
            hole = len(_PROBABILITY_KEY)
            self._leads = blocks(cells)
            # The lead before a category holds the probability of the one before it.
            self._lead_words = cells[:, 1:, hole : hole + DECIMAL_WIDTH].view("<u8")[..., 0]
        return self._canvas

    def _probabilities(
        self, result: Scores, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Texts of the heads' probabilities (A + 4, M), actions first, and of the categories' (M, K)."""
        n, first = places.shape[1], self._n_actions
        micro = np.empty(n * (first + 4 + result.top_category.shape[1]))
        heads, categories = micro[: n * (first + 4)].reshape(-1, n), micro[n * (first + 4) :].reshape(n, -1)
        heads[:first] = result.next_action.T
        heads[first] = result.purchase_probability
        heads[first + 1] = result.churn_probability
        heads[first + 2] = result.anomaly_score
        heads[first + 3] = result.too_predictable
        categories[:] = result.top_category_probability
        # A float32 times a million is exact in float64, so this rounds as the decimal text of the number would.
        micro *= 1e6
        np.rint(micro, out=micro)
        if not (micro.min() >= 0 and micro.max() <= 1_000_000):  # NaN compares false
            fields = ["next_action"] * first + ["purchase_probability", "churn_probability", "anomaly_score"]
            fields += ["too_predictable"] + ["top_category_probability"] * categories.shape[1]
            every = np.concatenate([heads.T, categories], axis=1)
            self._check((every >= 0) & (every <= 1_000_000), every / 1e6, fields, places)
        words = micro_text(micro.astype(np.int32))
        return words[: heads.size].reshape(heads.shape), words[heads.size :].reshape(categories.shape)

    def _gap_micros(self, median_gap_s: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.int64]:
        self._check((median_gap_s >= 0)[:, None], median_gap_s[:, None], ["median_gap_s"], places)
        return np.rint(np.minimum(median_gap_s.astype(np.float64), MAX_GAP_S) * 1e3).astype(np.int64) * 1_000

    def _reasons(
        self, terms: NDArray[np.float32], places: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """The terms by descending nats, all (3, n): whether there is one, which, and its millionths of nats."""
        self._check(np.isfinite(terms), terms, _REASONS, places)
        nats = np.rint(terms.T.astype(np.float64).clip(-MAX_NATS, MAX_NATS) * 1e6).astype(np.int64)
        # One integer holds the nats and, in its last two bits, which term: of equal ones the first leads.
        keys = nats * 4 + _TIE_BREAK
        keys[nats == 0] = _NO_TERM
        keys.sort(axis=0)
        keys = keys[::-1]
        applies = keys != _NO_TERM
        return applies, 2 - (keys & 3), (keys >> 2) * applies

    def _check(
        self,
        valid: NDArray[np.bool_],
        values: NDArray[Any],
        fields: Sequence[str],
        places: NDArray[np.int64],
    ) -> None:
        if valid.all():
            return
        row, column = np.argwhere(~valid)[0].tolist()
        partition, offset = places[:, row]
        raise BrokenInvariant(
            f"The model gave {fields[column]} {values[row, column]} for the event at "
            f"{self._topic}[{partition}]@{offset}. "
            "Nothing of this micro-batch was published; run foreclick models verify, or activate another version."
        )
