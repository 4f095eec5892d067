"""Predictions as records: the JSON value, the CloudEvents headers, and the JSON Schema of every topic.

The value is rendered from arrays (see ``stream.rendering``), a tile of events at a time, from its end to its
beginning. The bytes of one prediction depend on that event alone, never on the others in the micro-batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from msgspec.json import encode
from numpy.typing import NDArray

from stream.errors import BrokenInvariant
from stream.rendering import (
    DECIMAL_WIDTH,
    NUMBER_WIDTH,
    Block,
    Canvas,
    NameTable,
    blocks,
    json_strings,
    micro_text,
    number_texts,
    rfc3339,
)

__all__ = ["PREDICTION_SCHEMA", "TOPIC_KINDS", "PredictionRenderer", "Scores", "load_schema"]

PREDICTION_SCHEMA: Final = "foreclick.prediction.v1"
TOPIC_KINDS: Final = (
    "alerts.churn",
    "alerts.fraud",
    "clicks",
    "clicks.dlq",
    "foreclick.control",
    "labels",
    "predictions",
    "user_vectors",
)
MAX_GAP_S: Final = 3_155_760_000  # 100 years: a median beyond it says "never" just as well, and stays finite
MAX_NATS: Final = 1_000_000  # a term beyond it is absurd but finite; a limit keeps its millionths exact

_TILE = 1024  # events rendered at once: the scratch, under 1 MiB, then stays in the core's cache
_REASONS = ("unlikely_action", "unlikely_category", "unlikely_gap")  # the columns of Scores.terms
_CATEGORY_KEY, _PROBABILITY_KEY = b'{"category":', b',"probability":'
_TIE_BREAK = np.array([[2], [1], [0]])
_NO_TERM = -(2**62)  # below all others
_CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f]")

Headers = list[tuple[str, bytes]]


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


def load_schema(topic_kind: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a topic's values; ``topic_kind`` is its default name, one of TOPIC_KINDS."""
    if topic_kind not in TOPIC_KINDS:
        raise ValueError(f"No schema for the topic kind {topic_kind!r}; there are {', '.join(TOPIC_KINDS)}.")
    schema: dict[str, Any] = json.loads(
        (Path(__file__).parent / "schemas" / f"{topic_kind}.json").read_text("utf-8")
    )
    return schema


class PredictionRenderer:
    """Renders the predictions of one source partition. Not for several threads at once: it keeps its scratch.

    Args:
        model_name, model_version: of the artefact that made the scores.
        actions: names of the A columns of ``next_action``, ``other`` included.
        category_names: names by code known beforehand, such as the model's vocabulary.
        topic, topic_id, partition: the source; the id as readable text.
        churn_horizon_s: what ``churn_probability`` is about, seconds.
        source: CloudEvents source, a URI reference.
    """

    def __init__(
        self,
        model_name: str,
        model_version: str,
        actions: tuple[str, ...],
        category_names: Mapping[int, str] | None = None,
        *,
        topic: str,
        topic_id: str,
        partition: int,
        churn_horizon_s: int,
        source: str,
    ) -> None:
        self.source_prefix: Final = f"{topic_id}/{partition}"  # + /offset: the id of an event without one
        self._place = f"{topic}[{partition}]"
        self._names = NameTable(category_names or {})
        self._constant_headers = (
            ("ce_specversion", b"1.0"),
            ("ce_type", PREDICTION_SCHEMA.encode()),
            ("ce_source", source.encode()),
            ("content-type", b"application/json"),
        )
        self._canvas = Canvas(0, 0)
        self._leads: NDArray[np.void]
        self._lead_words: NDArray[np.uint64]
        self._n_actions = len(actions)

        # The blocks in the order of the value, after user, event id and the key of its time.
        place = b'{"topic":%b,"partition":%d,"offset":' % (encode(topic), partition)
        horizon = b',"churn_horizon_s":%d,"median_gap_s":' % churn_horizon_s
        model = b'{"name":%b,"version":%b}' % (encode(model_name), encode(model_version))
        action_keys = [
            b'%b"%b":' % (b"," if i else b"", name) for i, name in enumerate(json_strings(actions))
        ]
        action_parts = chain.from_iterable((key, None) for key in action_keys)
        self._after_event = np.void(b'","event_time_ms":')
        self._after_time = np.void(b',"source":' + place)
        self._after_offset = np.void(b'},"session":{"index":')
        self._after_index = np.void(b',"position":')
        self._actions = Block(
            _TILE, [b'},"model":%b,"next_action":{' % model, *action_parts, b'},"next_category":[']
        )
        self._chances = Block(
            _TILE,
            [
                _PROBABILITY_KEY,
                None,
                b'}],"purchase_probability":',
                None,
                b',"churn_probability":',
                None,
                horizon,
            ],
        )
        self._score = Block(_TILE, [b',"anomaly":{"score":', None, b',"surprisal_nats":'])
        self._too_predictable = Block(_TILE, [b',"too_predictable":', None, b',"reasons":['])
        codes = [b'},{"code":"%b","nats":' % code.encode() for code in _REASONS]
        width = max(map(len, codes))
        reason_cells = np.frombuffer(b"".join(code.rjust(width) for code in codes), "u1")
        self._reason_blocks = blocks(reason_cells.reshape(-1, width))
        self._reason_lengths = np.array([len(code) for code in codes])
        self._end = np.void(b'}]},"fake_order":null,"user_vector":null}')
        constants = (self._after_event, self._after_time, self._after_offset, self._after_index, self._end)
        filled = (self._actions, self._chances, self._score, self._too_predictable)
        self._fixed_width = (
            sum(constant.itemsize for constant in constants)
            + sum(block.width for block in filled)
            + len(_REASONS) * width
            + (4 + len(_REASONS) + 2) * NUMBER_WIDTH
        )

    def render(
        self,
        user_ids: Sequence[str],
        event_ids: Sequence[str | None],
        event_time_ms: NDArray[np.int64],
        offsets: NDArray[np.int64],
        session_index: NDArray[np.int32],
        session_position: NDArray[np.int32],
        result: Scores,
        names: Mapping[int, str],
        user_vectors: NDArray[np.float16] | None = None,
    ) -> tuple[list[bytes], list[Headers]]:
        """Render the predictions of M events.

        Args:
            user_ids: of M events.
            event_ids: an event without one is named after its source position.
            event_time_ms: (M,) since 1970, UTC.
            offsets: (M,) in the source partition.
            session_index: (M,) from 1.
            session_position: (M,) from 1.
            result: scores, row i of event i.
            names: category names by code. It may grow from call to call, but a code keeps its name.
                Codes without a name are left out.
            user_vectors: (M, H), rendered with 4 decimals; None renders null.

        Returns:
            M values and M lists of headers.

        Raises:
            BrokenInvariant: a score is NaN, infinite or no probability; the message names score and event.
        """
        values = self.values(
            user_ids,
            event_ids,
            event_time_ms,
            offsets,
            session_index,
            session_position,
            result,
            names,
            user_vectors,
        )
        return values, self.headers(user_ids, event_time_ms, offsets)

    def headers(
        self, user_ids: Sequence[str], event_time_ms: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> list[Headers]:
        """CloudEvents 1.0 headers of the Kafka binary mode; values are UTF-8.

        CloudEvents forbids control characters in attributes, so those of a user id are percent-encoded here.

        Source: CloudEvents 1.0.2, type system; Kafka protocol binding, section 3.2.
        """
        prefix = self.source_prefix
        subjects = user_ids
        if not "".join(user_ids).isprintable():
            subjects = [
                _CONTROL_CHARACTERS.sub(lambda found: f"%{ord(found[0]):02X}", user) for user in user_ids
            ]
        specversion, kind, source, content_type = self._constant_headers
        return [
            [
                specversion,
                kind,
                source,
                content_type,
                ("ce_id", f"{prefix}/{offset}/prediction/{subject}".encode()),
                ("ce_time", time),
                ("ce_subject", subject.encode()),
            ]
            for offset, time, subject in zip(offsets.tolist(), rfc3339(event_time_ms), subjects, strict=True)
        ]

    def values(
        self,
        user_ids: Sequence[str],
        event_ids: Sequence[str | None],
        event_time_ms: NDArray[np.int64],
        offsets: NDArray[np.int64],
        session_index: NDArray[np.int32],
        session_position: NDArray[np.int32],
        result: Scores,
        names: Mapping[int, str],
        user_vectors: NDArray[np.float16] | None = None,
    ) -> list[bytes]:
        """The JSON values alone; arguments and errors as of ``render``."""
        prefix = self.source_prefix
        users = json_strings(user_ids)
        events = json_strings(
            [event or f"{prefix}/{offset}" for event, offset in zip(event_ids, offsets.tolist(), strict=True)]
        )
        integers = np.stack([event_time_ms, offsets, session_index, session_position]).astype(np.int64)
        head = b'{"schema":"%b","user_id":"' % PREDICTION_SCHEMA.encode()
        values: list[bytes] = []
        for start in range(0, len(users), _TILE):
            tile = slice(start, start + _TILE)
            rests = self._after_event_id(integers[:, tile], result, tile, names)
            values += [
                b"".join((head, user, b'","event_id":"', event, rest))
                for user, event, rest in zip(users[tile], events[tile], rests, strict=True)
            ]
        if user_vectors is None:
            return values
        self._check(np.isfinite(user_vectors), user_vectors, ["user_vector"] * user_vectors.shape[1], offsets)
        # Adding 0 makes a plain 0.0 of -0.0.
        vectors = (np.round(user_vectors.astype(np.float64), 4) + 0.0).tolist()
        cut = -len(b"null}")
        return [
            b"%b%b}" % (value[:cut], encode(vector)) for value, vector in zip(values, vectors, strict=True)
        ]

    def _after_event_id(
        self, integers: NDArray[np.int64], result: Scores, tile: slice, names: Mapping[int, str]
    ) -> list[memoryview]:
        """What follows the event id in the values of at most _TILE events; integers is (4, n)."""
        offsets, n_actions = integers[1], self._n_actions
        n, n_actions = len(offsets), self._n_actions
        heads, words = self._probabilities(result, tile, offsets)
        applies, order, nats = self._reasons(result.terms[tile], offsets)
        codes = result.top_category[tile]
        rows = self._names.rows(codes.ravel(), names).reshape(codes.shape)
        named = rows != 0
        if named.all():
            last_word = words[:, -1]
        else:
            named_first = np.argsort(~named, axis=1, kind="stable")
            rows = np.take_along_axis(rows, named_first, axis=1)
            words = np.take_along_axis(words, named_first, axis=1)
            last_word = words[np.arange(n), named.sum(axis=1) - 1]
        name_blocks, name_lengths = self._names.texts(rows)
        micros = np.empty((len(_REASONS) + 2, n), np.int64)
        micros[:-2] = nats
        nats.sum(axis=0, out=micros[-2])
        micros[-1] = self._gap_micros(result.median_gap_s[tile], offsets)
        (integer_blocks, integer_lengths), (number_blocks, number_lengths) = number_texts(integers, micros)

        canvas = self._canvas_for(codes.shape[1])
        canvas.begin(n)
        # A reason is closed by what follows it: the next reason, or the end.
        canvas.prepend(self._end, self._end.itemsize - ~applies[0])
        number_lengths[:3] *= applies
        code_lengths = self._reason_lengths[order] * applies
        code_lengths[0] -= 2 * applies[0]
        for k in reversed(range(len(_REASONS))):
            canvas.prepend(number_blocks[k], number_lengths[k])
            canvas.prepend(self._reason_blocks[order[k]], code_lengths[k])
        canvas.prepend(self._too_predictable.filled(heads[n_actions + 3]))
        canvas.prepend(number_blocks[3], number_lengths[3])
        canvas.prepend(self._score.filled(heads[n_actions + 2]))
        canvas.prepend(number_blocks[4], number_lengths[4])
        # Where no category is named, there is no last probability to close.
        closing = len(_PROBABILITY_KEY) + DECIMAL_WIDTH + 1
        chances = self._chances.filled(last_word, heads[n_actions], heads[n_actions + 1])
        canvas.prepend(chances, chances.itemsize - closing * (rows[:, 0] == 0))
        self._lead_words[:n] = words[:, :-1]
        canvas.prepend_list(name_blocks, name_lengths, self._leads[:n], len(_CATEGORY_KEY))
        canvas.prepend(self._actions.filled(*heads[:n_actions]))
        canvas.prepend(integer_blocks[3], integer_lengths[3])
        canvas.prepend(self._after_index)
        canvas.prepend(integer_blocks[2], integer_lengths[2])
        canvas.prepend(self._after_offset)
        canvas.prepend(integer_blocks[1], integer_lengths[1])
        canvas.prepend(self._after_time)
        canvas.prepend(integer_blocks[0], integer_lengths[0])
        canvas.prepend(self._after_event)
        return canvas.texts()

    def _canvas_for(self, n_categories: int) -> Canvas:
        """The canvas, made anew when a name is longer than any before; and the leads with the same number of rows."""
        lead = _PROBABILITY_KEY + b"0.000000}," + _CATEGORY_KEY
        width = self._fixed_width + n_categories * (self._names.width + len(lead))
        if self._canvas.width != width:
            self._canvas = Canvas(_TILE, width)
            cells = np.empty((_TILE, n_categories, len(lead)), "u1")
            cells[:] = np.frombuffer(lead, "u1")
            hole = len(_PROBABILITY_KEY)
            self._leads = blocks(cells)
            # The lead before a category holds the probability of the one before it.
            self._lead_words = cells[:, 1:, hole : hole + DECIMAL_WIDTH].view("<u8")[..., 0]
        return self._canvas

    def _probabilities(
        self, result: Scores, tile: slice, offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Texts of the heads (A + 4, n) - actions, purchase, churn, anomaly, too predictable - and of categories (n, K)."""
        n, first = len(offsets), self._n_actions
        both = np.empty(n * (first + 4 + result.top_category.shape[1]), np.float32)
        heads, categories = both[: n * (first + 4)].reshape(-1, n), both[n * (first + 4) :].reshape(n, -1)
        heads[:first] = result.next_action[tile].T
        heads[first] = result.purchase_probability[tile]
        heads[first + 1] = result.churn_probability[tile]
        heads[first + 2] = result.anomaly_score[tile]
        heads[first + 3] = result.too_predictable[tile]
        categories[:] = result.top_category_probability[tile]
        # A float32 times a million is exact in float64, so this rounds as the decimal text of the number would.
        micro = np.multiply(both, 1e6, dtype=np.float64)
        np.rint(micro, out=micro)
        if not (micro.min() >= 0 and micro.max() <= 1_000_000):  # NaN compares false
            fields = ["next_action"] * first + ["purchase_probability", "churn_probability", "anomaly_score"]
            fields += ["too_predictable"] + ["top_category_probability"] * categories.shape[1]
            probabilities = np.concatenate([heads.T, categories], axis=1)
            rounded = np.rint(probabilities * np.float64(1e6))
            self._check((rounded >= 0) & (rounded <= 1_000_000), probabilities, fields, offsets)
        words = micro_text(micro.astype(np.int32))
        return words[: heads.size].reshape(heads.shape), words[heads.size :].reshape(categories.shape)

    def _gap_micros(self, median_gap_s: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        self._check((median_gap_s >= 0)[:, None], median_gap_s[:, None], ["median_gap_s"], offsets)
        return np.rint(np.minimum(median_gap_s.astype(np.float64), MAX_GAP_S) * 1e3).astype(np.int64) * 1_000

    def _reasons(
        self, terms: NDArray[np.float32], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """The terms by descending nats, all (3, n): whether there is one, which, and its millionths of nats."""
        self._check(np.isfinite(terms), terms, _REASONS, offsets)
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
        offsets: NDArray[np.int64],
    ) -> None:
        if valid.all():
            return
        row, column = np.argwhere(~valid)[0].tolist()
        raise BrokenInvariant(
            f"The model gave {fields[column]} {values[row, column]} for the event at {self._place}@{offsets[row]}. "
            "Nothing of this micro-batch was published; run foreclick models verify, or activate another version."
        )
