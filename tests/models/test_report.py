"""Laws of the report: one page that needs nothing beside itself, and says what was not beaten."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from models.evaluation import figures
from models.evaluation.answers import Answers
from models.evaluation.comparison import compare_model
from models.evaluation.predictions import predictions_of
from models.evaluation.report import page
from tests.models import synthetic

EVIL = '<b onload="x">$\\frac$</b>'


@pytest.fixture(scope="module")
def report(engine, columns) -> str:
    """Of random weights beside an oracle for every head but gap, where it says that users never return."""
    answers, made = Answers(columns, synthetic.ACTIONS.index("purchase")), predictions_of(engine, columns)
    comparison = compare_model("lstm", answers, made, 0.3)
    came = np.eye(4)[columns["action"]]
    comparison.add("next_action", "oracle", answers.next_action(came))
    comparison.add("purchase", "oracle", answers.purchase(answers.purchase_N.astype(float), 0.5))
    comparison.purchase_by_method["oracle"] = answers.purchase_N.astype(float)
    comparison.add("gap", "never", answers.gap(np.full(len(columns["row"]), 1e12)))
    result = {
        "model": {"name": EVIL, "version": "1", "entry": "lstm", "sha256": "ab" * 32},
        "file": "clicks & more.csv",
        "sha256": "cd" * 32,
        "split": "test",
        "bounds": [60, 70],
        "split_time_ms": None,
        "users": 90,
        "events": len(columns["row"]),
        "gap_unit_s": 1.0,
        "actions": ["view", EVIL, "purchase", "other"],
        "metrics": comparison.entries(),
        "differences": comparison.differences(),
        "verdicts": comparison.verdicts(),
        "notes": [*comparison.notes, EVIL],
    }
    curve = [{"epoch": number, "loss": 1 / number, "tuning_loss": 1.2 / number} for number in range(1, 5)]
    return page(result, comparison, comparison, made, curve)


class Read(HTMLParser):
    """Every tag and attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_names_no_host_and_loads_nothing(report):
    """No address, no script, no picture file; links lead into the page."""
    read = Read()
    read.feed(report)
    assert "://" not in report
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    for name, value in read.attributes:
        assert not name.startswith("on"), name
        if name in {"href", "src", "xlink:href"}:
            assert value.startswith("#")


def test_there_is_a_figure_for_each_question(report):
    """Reliability, confusion; ROC, PR, reliability, after k events; gap quantiles; training curve."""
    assert report.count("<svg") == report.count("</svg>") == report.count("<figure>") == 8


def test_ink_is_that_of_the_text_around(report):
    """On dark paper letters and axes are light: no figure brings ink or paper of its own."""
    assert "currentColor" in report
    assert figures._INK not in report
    assert not re.search(r"<path [^>]*fill: (#ffffff|#000000)", report)


def test_what_is_not_beaten_is_said(report):
    """The oracle is ahead of the model; the model is ahead of who says that nobody returns."""
    assert '<span class="behind">behind</span> oracle' in report
    assert '<span class="ahead">ahead of</span> never' in report
    assert "comparisons 2 are not won" in report


def test_names_of_the_shop_are_text_not_markup(report):
    """Neither in the page nor in a figure."""
    assert EVIL not in report
    assert "&lt;b onload=" in report


def test_equal_figures_have_equal_bytes(columns):
    """Two reports of one evaluation can be compared."""
    label = columns["action"] == 2
    p = np.linspace(0, 1, len(label))
    assert figures.roc("a", {"a": p}, label) == figures.roc("a", {"a": p}, label)


def test_a_report_of_one_head_alone_is_whole(engine, columns):
    """A log without categories and purchases leaves the other sections."""
    changed = dict(columns, category=np.zeros_like(columns["category"]))
    answers, made = Answers(changed, -1), predictions_of(engine, changed)
    comparison = compare_model("lstm", answers, made, None)
    result = {
        "model": {"name": "m", "version": "1", "entry": "lstm", "sha256": "ab" * 32},
        "file": "f", "sha256": "cd" * 32, "split": "all", "bounds": None, "split_time_ms": None,
        "users": 90, "events": 1,
        "gap_unit_s": 10_000.0, "actions": ["view", "cart", "purchase", "other"],
        "metrics": comparison.entries(), "differences": [], "verdicts": [], "notes": [],
    }  # fmt: skip
    html = page(result, comparison, None, made, [])
    assert "<h2>Gap</h2>" in html
    assert "unit 10,000 s" in html
    assert "<h2>Purchase</h2>" not in html
    assert "No simple method was measured" in html
