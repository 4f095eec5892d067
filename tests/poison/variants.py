"""As many hostile records as one wants: the corpus's kinds, drawn and combined by chance. The same for the same seed.

Nothing is known of what becomes of one; all of them obey the laws of ``tests/poison/test_poison.py``. Their users are
never those of the traffic that they are mixed into, unless they are certain to be rejected.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from tests.poison.makings import (
    HOSTILE_NAMES,
    MARK,
    NO_JSON,
    NOON_MS,
    USER,
    WRONG_NUMBERS,
    WRONG_TIMES,
    Poison,
    event_of,
    ga4,
    raw_event,
    segment,
)

_KEY = USER.encode()
_FIELDS = (
    "user_id",
    "event_time_ms",
    "action",
    "event_id",
    "item_id",
    "category_id",
    "price",
    "quantity",
    "dwell_ms",
)
_FIELDS += ("lines", "extra", "currency", "ip", "unheard_of")
_TYPES = (
    "null",
    "true",
    "[]",
    "{}",
    "[[]]",
    '""',
    '"x"',
    "0",
    "-1",
    "1.5",
    "1e15",
    '{"a":null}',
    "[null]",
    '"\\u0000"',
)
_ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp500", "cp037")
_CONTROLS = (
    b"\0",
    b"\n",
    b"\r\n",
    b"\x1b[2J",
    b"\x7f",
    b"\xc2\x85",
    b"\xe2\x80\xae",
    b"\xed\xa0\x80",
    b"\xff",
    b'"',
    b"\\",
)
_FOREIGN = (
    None,
    True,
    -1,
    1.5,
    10**30,
    1e300,
    "",
    "x",
    "1e999",
    "\0",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    f"\n{MARK}",
)


def _event(rng: random.Random, **texts: str | None) -> bytes:
    """An event of the hostile user, itself in order."""
    return raw_event(
        **{
            "event_time_ms": str(NOON_MS + rng.randrange(10**9)),
            "event_id": f'"{rng.randrange(1 << 40):x}"',
            "category_id": f'"c{rng.randrange(50)}"',
            "price": f"{rng.randrange(1, 10**6) / 100}",
            **texts,
        }
    )


def _garbage(rng: random.Random) -> Poison:
    return Poison("garbage", rng.randbytes(rng.randrange(40)), rng.randbytes(rng.randrange(400)))


def _cut(rng: random.Random) -> Poison:
    whole = _event(rng)
    return Poison("cut", _KEY, whole[: rng.randrange(len(whole))])


def _joined(rng: random.Random) -> Poison:
    between = rng.choice((b"", b"\n", b",", b"\0", b" ", b"\x1e"))
    return Poison("joined", _KEY, between.join(_event(rng) for _ in range(rng.randrange(2, 5))))


def _flipped(rng: random.Random) -> Poison:
    value = bytearray(_event(rng))
    for _ in range(rng.randrange(1, 9)):
        value[rng.randrange(len(value))] = rng.randrange(256)
    return Poison("flipped", _KEY, bytes(value))


def _spliced(rng: random.Random) -> Poison:
    value = _event(rng)
    at = rng.randrange(len(value))
    return Poison("spliced", _KEY, value[:at] + rng.choice(_CONTROLS) * rng.choice((1, 2, 100)) + value[at:])


def _encoded(rng: random.Random) -> Poison:
    name = rng.choice(_ENCODINGS)
    return Poison(f"in {name}", _KEY, _event(rng).decode().encode(name))


def _typed(rng: random.Random) -> Poison:
    fields = {rng.choice(_FIELDS): rng.choice(_TYPES) for _ in range(rng.randrange(1, 4))}
    return Poison("typed", _KEY, _event(rng, **fields))


def _numbered(rng: random.Random) -> Poison:
    text = rng.choice(WRONG_NUMBERS + NO_JSON + WRONG_TIMES + ("9" * rng.randrange(1, 6_000),))
    if rng.random() < 0.3:
        text = f'{{"a":{text}}}' if rng.random() < 0.5 else f'[{{"price":{text}}}]'
    return Poison("numbered", _KEY, _event(rng, **{rng.choice(_FIELDS): text}))


def _nested(rng: random.Random) -> Poison:
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ('{"lines":[', "]}")))
    # No deeper than fits: what is too large is never parsed.
    depth = int(10 ** rng.uniform(0.5, 4.7)) % (60_000 // (len(opening) + 1))
    text = opening * depth + "1" + closing * (depth if rng.random() < 0.7 else rng.randrange(depth + 1))
    inside = _event(rng, **{rng.choice(("lines", "extra", "unheard_of")): text})
    return Poison("nested", _KEY, text.encode() if rng.random() < 0.3 else inside)


def _bomb(rng: random.Random) -> Poison:
    count = int(10 ** rng.uniform(1, 3.6))
    text = rng.choice(
        (
            "[" + ",".join(["0"] * count) + "]",
            "[" + ",".join(["{}"] * count) + "]",
            "{" + ",".join(f'"k{i}":{i}' for i in range(count)) + "}",
            "{" + ",".join(['"k":1'] * count) + "}",
            '"' + "\\ud83d\\ude00" * count + '"',
            '"' + "\\u0000" * count + '"',
            '"' + "\\" * count + '"',
        )
    )
    return Poison("bomb", _KEY, _event(rng, **{rng.choice(_FIELDS): text}))


def _named(rng: random.Random) -> Poison:
    name = rng.choice(HOSTILE_NAMES)
    name = name[: rng.randrange(1, len(name) + 1)] + rng.choice(("", "\n", "\0", "x" * rng.randrange(600)))
    if rng.random() < 0.5:
        return Poison("named user", *event_of(name, event_id=None))
    field = rng.choice(("action", "event_id", "item_id", "category_id", "session_id", "device_id", "shop_id"))
    return Poison("named", _KEY, _event(rng, **{field: json.dumps(name, ensure_ascii=rng.random() < 0.5)}))


def _long(rng: random.Random) -> Poison:
    name = f'"{rng.randrange(1 << 30)}{"n" * int(10 ** rng.uniform(2, 4.8))}"'
    return Poison(
        "long", _KEY, _event(rng, **{rng.choice(("action", "event_id", "item_id", "category_id")): name})
    )


def _repeated(rng: random.Random) -> Poison:
    pairs = _event(rng)[1:-1].split(b",")
    pairs += [rng.choice(pairs) for _ in range(rng.randrange(1, 5))]
    pairs += [b'"%b":%b' % (rng.choice(_FIELDS).encode(), rng.choice(_TYPES).encode())]
    rng.shuffle(pairs)
    return Poison("repeated", _KEY, b"{" + b",".join(pairs) + b"}")


def _keyed(rng: random.Random) -> Poison:
    key = rng.choice(
        (
            None,
            b"",
            b"\0fence",
            b"\0src",
            b"\0m12345678",
            b"\xff",
            b"k" * 513,
            b"k" * 65_536,
            rng.randbytes(9),
        )
    )
    return Poison("keyed", key, rng.choice((None, _event(rng), b"", rng.randbytes(20))))


def _headed(rng: random.Random) -> Poison:
    names = (
        "h",
        "",
        f"\r\n{MARK}",
        "clicks.reason",
        "__streams.errors.message",
        "ce_id",
        "\0",
        "n" * rng.randrange(9_000),
    )
    headers = tuple(
        (rng.choice(names), rng.choice((None, b"", b"\xff\0\n", rng.randbytes(rng.randrange(3_000)))))
        for _ in range(rng.randrange(1, 60))
    )
    return rng.choice((_cut, _typed, _named, _keyed))(rng)._replace(headers=headers)


def _foreign(rng: random.Random) -> Poison:
    wrong = rng.choice(_FOREIGN)
    if rng.random() < 0.5:
        fields = ("event", "userId", "anonymousId", "messageId", "timestamp", "properties", "context", "type")
        nested = rng.choice(
            ("price", "quantity", "products", "product_id", "category", "order_id", "currency")
        )
        given = {rng.choice(fields): wrong} if rng.random() < 0.5 else {"properties": {nested: wrong}}
        return Poison("segment", _KEY, segment(**given))
    fields = ("event_name", "user_id", "user_pseudo_id", "event_timestamp", "items", "event_params", "device")
    fields += ("value", "ecommerce", "params", "transaction_id", "ga_session_id", "events", "client_id")
    return Poison("ga4", _KEY, ga4(**{rng.choice(fields): wrong for _ in range(rng.randrange(1, 3))}))


def _large(rng: random.Random) -> Poison:
    size = rng.randrange(65_000, 200_000)
    return Poison(
        "large",
        _KEY,
        rng.choice((_event(rng, item_id=f'"{"i" * size}"'), rng.randbytes(100) * (size // 100))),
    )


_KINDS: tuple[tuple[Callable[[random.Random], Poison], int], ...] = (
    *(
        (kind, 4)
        for kind in (_garbage, _cut, _joined, _flipped, _spliced, _encoded, _typed, _numbered, _named)
    ),
    *((kind, 4) for kind in (_repeated, _keyed, _headed, _foreign)),
    *((kind, 1) for kind in (_nested, _bomb, _long, _large)),
)


def variants(count: int, seed: int) -> Iterator[Poison]:
    """Hostile records, drawn from the seed."""
    rng = random.Random(seed)
    kinds, weights = zip(*_KINDS, strict=True)
    for kind in rng.choices(kinds, weights, k=count):
        yield kind(rng)
