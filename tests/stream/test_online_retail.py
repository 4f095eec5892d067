"""Laws of the order log: lines fold to invoices, what goes back is a return, what belongs to nobody is counted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import InputFileError
from stream.events import Event, decode_events
from stream.files import LogFile, read_log
from stream.formats import Rejected
from stream.formats.online_retail import ONLINE_RETAIL, adapt_row, join
from tests.command_line import foreclick

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
ROWS = """\
700001,A1,PLAIN MUG,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom
700002,B7,"JAM SET, ""BLUE"", LARGE",2,2010-12-01 08:30:00,4.25,13047.0,France
700001,A2,,3,2010-12-01 08:25:00,0.1,17850.0,United Kingdom
700003,A1,PLAIN MUG,1,2010-12-01 09:00:00,2.55,,United Kingdom
C700004,A1,PLAIN MUG,-6,2010-12-02 10:00:00,2.55,17850.0,United Kingdom
C700004,A2,,-1,2010-12-02 10:00:00,0.1,17850.0,United Kingdom
"""


def read(tmp_path: Path, rows: str, format_: str = "online_retail") -> LogFile:
    path = tmp_path / "orders.csv"
    path.write_text(HEADER + rows)
    return read_log(path, format_)


@pytest.mark.parametrize("format_", ["online_retail", "auto"])
def test_lines_of_an_invoice_become_one_purchase(tmp_path: Path, format_: str) -> None:
    """Wherever in the file they stand: pieces and sums are added up, the time is the earliest, quotes are read."""
    log = read(tmp_path, ROWS, format_)
    assert log.format == "online_retail"
    assert log.left_out == 1
    first, second, back = [msgspec.json.decode(record.value) for record in log.records]
    assert first == {
        "user_id": "17850",
        "event_time_ms": 1_291_191_900_000,
        "action": "purchase",
        "order_id": "700001",
        "quantity": 9,
        "price": 15.6,
        "lines": [
            {"item_id": "A1", "price": 2.55, "quantity": 6},
            {"item_id": "A2", "price": 0.1, "quantity": 3},
        ],
    }
    assert (second["user_id"], second["price"]) == ("13047", 8.5)
    assert [record.line for record in log.records] == [2, 3, 6]
    assert (back["action"], back["quantity"], back["price"]) == ("return", 7, 15.4)
    assert back["lines"][0] == {"item_id": "A1", "price": 2.55, "quantity": 6}
    events = decode_events([r.key for r in log.records], [r.value for r in log.records])
    assert all(isinstance(event, Event) for event in events)


def test_a_bad_line_is_rejected_without_its_invoice(tmp_path: Path) -> None:
    """The other lines of the invoice go on; the bad one keeps its bytes and says why."""
    bad = "700001,A3,X,six,2010-12-01 08:26:00,1,17850.0,United Kingdom"
    log = read(tmp_path, ROWS + bad + "\n")
    letters = [record for record in log.records if not record.key]
    assert [(letter.value.decode(), letter.unusable) for letter in letters] == [
        (bad, "expected a number, got 'six' at column Quantity")
    ]
    assert len(log.records) == 4


def test_a_log_without_customers_has_nobody_to_score(tmp_path: Path) -> None:
    """The error says how many rows there were."""
    rows = "700003,A1,PLAIN MUG,1,2010-12-01 09:00:00,2.55,,United Kingdom\n"
    with pytest.raises(InputFileError, match="has 1 rows, none with a customer"):
        read(tmp_path, rows)


def test_the_command_says_how_many_rows_it_left_out(tmp_path: Path) -> None:
    """On stderr, not among the predictions."""
    read(tmp_path, ROWS)
    ran = foreclick("score", tmp_path / "orders.csv", "--out", tmp_path / "out.jsonl")
    assert ran.code == 0
    assert "1 rows without a customer left out" in ran.err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


cells = st.sampled_from(["", "6", "-6", "1e400", "C7", "2010-12-01 08:26:00", "17850.0"]) | st.text(
    max_size=5
)


@given(st.dictionaries(st.sampled_from(ONLINE_RETAIL.columns), cells))
def test_any_cells_are_rejected_or_an_event(row: dict[str, str]) -> None:
    """Nothing but ``Rejected`` is raised, and what is not rejected joins with itself to an event of two lines."""
    try:
        order = adapt_row(row)
    except Rejected:
        return
    join(order, adapt_row(row))
    assert len(msgspec.convert(order, Event).lines or ()) == 2
