"""Records that mean harm, by hand: each has a name, and what must become of it.

``expected`` is a reason of ``stream.events.REASONS``, or ``event`` where something that looks dangerous is in order.
"""

from __future__ import annotations

import gzip
import json

from tests.poison.makings import (
    EVENT,
    HOSTILE_NAMES,
    MARK,
    NO_JSON,
    USER,
    WRONG_NUMBERS,
    WRONG_TIMES,
    Poison,
    event_of,
    ga4,
    raw_event,
    segment,
)

_FINE, _FINE_VALUE = USER.encode(), raw_event()


def _same_user(name: str, expected: str, *values: bytes) -> list[Poison]:
    return [Poison(f"{name} {i}", _FINE, value, expected) for i, value in enumerate(values)]


def _nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + closing * depth


CORPUS: tuple[Poison, ...] = (
    # ------------------------------------------------------------------ bytes that are no text
    *_same_user(
        "no text", "undecodable", b"", b"\0", b"\xff\xfe\xfd", bytes(range(256)), b"\xc0\x80", b"\x1f\x8b\x08"
    ),
    *_same_user(
        "packed", "undecodable", gzip.compress(_FINE_VALUE, mtime=0), gzip.compress(bytes(1 << 20), mtime=0)
    ),
    *_same_user(
        "another encoding",
        "undecodable",
        *(
            _FINE_VALUE.decode().encode(name)
            for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp500")
        ),
        b"\xef\xbb\xbf" + _FINE_VALUE,
        b"\xfe\xff" + _FINE_VALUE,
        raw_event(item_id='"é"').decode().encode("latin-1"),
        raw_event(item_id='"\ud83d\ude00"'),
        raw_event(item_id='"\\ud83d"'),
        raw_event(item_id='"@"').replace(b"@", b"\xc0\xaf"),
    ),
    # ------------------------------------------------------------------ JSON that is none
    *_same_user("cut", "undecodable", *(_FINE_VALUE[:end] for end in (1, 2, 12, 40, len(_FINE_VALUE) - 1))),
    *_same_user(
        "joined",
        "undecodable",
        *(_FINE_VALUE + between + _FINE_VALUE for between in (b"", b"\n", b",", b"\0")),
    ),
    *_same_user("no JSON", "undecodable", *(raw_event(price=text) for text in NO_JSON)),
    *_same_user(
        "comments", "undecodable", b"//x\n" + _FINE_VALUE, _FINE_VALUE[:-1] + b",}", b"\0" + _FINE_VALUE
    ),
    *_same_user(
        "csv", "undecodable", b"u1,1735000000,view", f"\n{MARK}".encode(), b"user_id=u1&action=view", b"<a/>"
    ),
    # ------------------------------------------------------------------ JSON that is too much
    *_same_user(
        "nested",
        "undecodable",
        *(_nested(30_000, "[", "]").encode(), b"[" * 60_000, b'{"a":' * 12_000),
        *(
            raw_event(deep=_nested(depth, *signs))
            for depth in (5_000, 8_000)
            for signs in (('{"a":[', "]}"), ("[", "]"))
        ),
        raw_event(lines=_nested(10_000, "[", "]")),
    ),
    *_same_user("nested within bounds", EVENT, raw_event(deep=_nested(100, "[", "]"))),
    *_same_user(
        "too large", "too_large", b"x" * 65_537, b" " * 1_000_000, raw_event(item_id='"' + "i" * 65_536 + '"')
    ),
    *_same_user(
        "long name",
        EVENT,
        *(
            raw_event(**{f: '"' + "n" * 64_000 + '"'})
            for f in ("item_id", "category_id", "action", "event_id")
        ),
    ),
    *_same_user(
        "escapes",
        EVENT,
        raw_event(item_id='"' + "\\u0000" * 10_000 + '"'),
        raw_event(event_id='"' + '\\n\\"' * 9_000 + '"'),
    ),
    *_same_user(
        "many fields",
        EVENT,
        raw_event(**{f"f{i}": "0" for i in range(6_000)}),
        raw_event(extra=json.dumps({str(i): i for i in range(4_000)})),
    ),
    *_same_user("many lines", EVENT, raw_event(lines="[" + ",".join(["{}"] * 20_000) + "]")),
    *_same_user("white", EVENT, b" " * 60_000 + _FINE_VALUE, _FINE_VALUE + b"\r\n\t " * 10_000),
    # ------------------------------------------------------------------ numbers
    *_same_user("not finite", "not_finite", *(raw_event(price=text) for text in WRONG_NUMBERS)),
    *_same_user(
        "not finite inside",
        "not_finite",
        *(raw_event(lines=f'[{{"price":{t}}}]', extra=f'{{"a":{t}}}') for t in WRONG_NUMBERS),
    ),
    *_same_user(
        "not finite unheard of", "not_finite", *(raw_event(unheard_of=text) for text in ("NaN", "Infinity"))
    ),
    *_same_user(
        "not finite time",
        "not_finite",
        *(raw_event(event_time_ms=text) for text in ("NaN", "1e999", "9" * 5_000)),
    ),
    *_same_user(
        "odd numbers",
        EVENT,
        *(
            raw_event(price=t)
            for t in ("-0", "-0.0", "1e-999", "1e308", "-1e308", "5e-324", "0." + "0" * 5_000 + "1")
        ),
    ),
    *_same_user("wrong time", "wrong_type", *(raw_event(event_time_ms=text) for text in WRONG_TIMES)),
    *_same_user(
        "odd times", EVENT, raw_event(event_time_ms="1"), raw_event(event_time_ms="9007199254740991")
    ),
    *_same_user("far dwell", "wrong_type", raw_event(dwell_ms="9007199254740992"), raw_event(dwell_ms="1.5")),
    # ------------------------------------------------------------------ types
    *_same_user(
        "root", "wrong_type", b"null", b"true", b"0", b"-1.5e3", b'"u1"', b"[]", b"[" + _FINE_VALUE + b"]"
    ),
    *_same_user(
        "wrong type",
        "wrong_type",
        *(
            raw_event(**{field: text})
            for field in ("user_id", "action", "item_id")
            for text in ("1", "[]", "{}", "true")
        ),
    ),
    *_same_user(
        "wrong inside",
        "wrong_type",
        raw_event(lines="{}"),
        raw_event(lines="[1]"),
        raw_event(extra="[]"),
        raw_event(extra='{"a":"b"}'),
    ),
    *_same_user(
        "missing",
        "missing_field",
        b"{}",
        raw_event(user_id=None),
        raw_event(action="null"),
        raw_event(event_time_ms=None),
    ),
    # ------------------------------------------------------------------ the same key again: the last one counts
    *_same_user(
        "repeated key",
        EVENT,
        _FINE_VALUE[:-1] + b',"price":1,"price":2}',
        b'{"user_id":"other",' + _FINE_VALUE[1:],
    ),
    *_same_user("repeated user", "key_mismatch", _FINE_VALUE[:-1] + b',"user_id":"other"}'),
    *_same_user(
        "repeated wrong", "wrong_type", _FINE_VALUE[:-1] + b',"price":"x"}', b'{"price":[],' + _FINE_VALUE[1:]
    ),
    # ------------------------------------------------------------------ keys
    Poison("no key", None, _FINE_VALUE, "missing_key"),
    Poison("nothing", None, None, "missing_key"),
    *(
        Poison(f"key {i}", key, _FINE_VALUE, "key_mismatch")
        for i, key in enumerate(
            (b"", b"\xff\xfe", b"\0fence", b"\0src", b"\0c\1\0\0\0", b"k" * 65_536, USER.upper().encode())
        )
    ),
    *(
        Poison(f"reserved name {i}", *event_of(user), "bad_user_id")
        for i, user in enumerate(
            ("", "\0", "\0fence", "\0src", "\0c\1\0\0\0", "\0m", "a" * 513, "é" * 257, "n" * 60_000)
        )
    ),
    *(
        Poison(f"tombstone {i}", key, None, "bad_user_id")
        for i, key in enumerate(
            (b"", b"\0fence", b"\0src", b"\xff", b"\xed\xa0\x80", b"k" * 513, b"k" * 65_536)
        )
    ),
    *(Poison(f"hostile user {i}", *event_of(user), EVENT) for i, user in enumerate(HOSTILE_NAMES)),
    *(
        Poison(
            f"hostile {field} {i}",
            _FINE,
            raw_event(**{field: json.dumps(name, ensure_ascii=i % 2 == 0)}),
            EVENT,
        )
        for field in ("action", "event_id", "item_id", "category_id", "currency", "ip")
        for i, name in enumerate(HOSTILE_NAMES)
    ),
    # ------------------------------------------------------------------ headers
    Poison("many headers", _FINE, b"{", "undecodable", tuple((f"h{i}", b"") for i in range(5_000))),
    Poison("huge header", _FINE, b"{", "undecodable", (("h", b"x" * 900_000),)),
    Poison("huge header name", _FINE, b"{", "undecodable", (("n" * 500_000, None),)),
    Poison("unpacked", _FINE, b"x" * 5_000_000, "too_large", (("h", b"x" * 300_000),)),
    Poison("unpacked key", b"k" * 5_000_000, b"{}", "missing_field"),
    Poison(
        "forged origin",
        _FINE,
        b"{",
        "undecodable",
        (("__streams.errors.offset", b"1"), ("clicks.reason", b"late")),
    ),
    Poison(
        "header lines",
        _FINE,
        b"{",
        "undecodable",
        ((f"a\r\n{MARK}", f"b\n{MARK}".encode()), ("", None), ("\0", b"\0")),
    ),
    # ------------------------------------------------------------------ foreign shapes, half right
    *_same_user("segment", EVENT, segment(), segment(event="Unheard Of"), segment(type="page", event=None)),
    *_same_user(
        "segment wrong",
        "wrong_type",
        *(
            segment(**{field: wrong})
            for field in ("event", "userId", "messageId")
            for wrong in ([], {}, True, 1.5)
        ),
        *(
            segment(timestamp=wrong)
            for wrong in ([1], {"a": 1}, 5, "yesterday", "0001-01-01", "1e999", "9" * 5_000)
        ),
        *(
            segment(properties=wrong)
            for wrong in (1, [], "x", {"products": {}}, {"products": [1]}, {"price": "much"})
        ),
        *(segment(context=wrong) for wrong in ([], "x", {"device": 1}, {"ip": []})),
    ),
    *_same_user(
        "segment number",
        "not_finite",
        segment(properties={"price": "1e999"}),
        segment(properties={"price": float("nan")}),
    ),
    *_same_user(
        "segment missing", "missing_field", segment(timestamp=None), segment(userId=None), segment(event=None)
    ),
    *_same_user("segment key", "key_mismatch", segment(userId=7), segment(userId=f"a\n{MARK}")),
    *_same_user(
        "ga4",
        EVENT,
        ga4(),
        ga4(event_params="x"),
        ga4(device=[]),
        ga4(event_params=[{"key": [], "value": 1}, 5]),
    ),
    *_same_user(
        "ga4 wrong",
        "wrong_type",
        *(
            ga4(**{field: wrong})
            for field in ("event_name", "user_id", "event_timestamp", "transaction_id")
            for wrong in ([1], {"a": 1}, True)
        ),
        *(ga4(items=wrong) for wrong in ({}, "x", [1], [{"item_id": []}], [{"price": "much"}])),
        *(ga4(event_timestamp=wrong) for wrong in (-5, 1, 10**30, 1e30, "soon")),
        b'{"client_id":"a","events":[]}',
        b'{"client_id":"a","events":[1]}',
        b'{"client_id":"a","events":[{},{}]}',
    ),
    *_same_user(
        "ga4 number",
        "not_finite",
        ga4(value="-1e999"),
        ga4(event_timestamp="9" * 5_000),
        ga4(items=[{"price": "inf"}]),
    ),
    *_same_user(
        "ga4 missing", "missing_field", ga4(user_id=None), ga4(event_timestamp=None), ga4(event_name="")
    ),
)
