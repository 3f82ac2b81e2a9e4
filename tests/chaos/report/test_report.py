"""The page: one file that needs nothing else, says everything, and is well-formed."""

from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from chaos.findings import Verdict
from chaos.history import History, RunHead
from chaos.report import Report, render, write

VOID = {"meta", "br", "hr", "img", "link", "input"}
LOADING = ("src", "href", "srcset", "action", "data", "poster")


class Page(HTMLParser):
    """Checks nesting, collects ids, texts and whatever would be loaded."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.tags, self.texts = [], [], [], [], []
        self.labels = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.labels += (values.get("aria-labelledby") or "").split()
        self.loads += [values[name] for name in LOADING if values.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def text(report):
    return render(report)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_tags_are_balanced_and_ids_unique(page):
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_every_label_points_to_something_on_the_page(page):
    assert page.labels
    assert set(page.labels) <= set(page.ids)


def test_nothing_is_loaded_from_anywhere(text, page):
    assert [target for target in page.loads if not target.startswith("#")] == []
    assert "script" not in page.tags
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")


def test_links_inside_the_figures_lead_to_their_own_definitions(page):
    assert {target.removeprefix("#") for target in page.loads} <= set(page.ids)


def test_verdict_seed_and_the_command_to_replay_are_there(page):
    assert "The tour broken" in page.text
    assert "relay-chaos demo --seed 42" in page.text
    assert "embedded" in page.text


def test_expected_stands_beside_measured(page):
    assert "success 99.19% 99.10%" in page.text
    assert "no promise" in page.text


def test_a_broken_promise_names_call_and_trace_and_its_text_is_escaped(text, page):
    assert "call 30: op-30 was charged 2 times <script>" in page.text
    assert "0af7651916cd43dd8448eb211c80319c" in page.text
    assert "<script" not in text


def test_the_figures_have_names_and_descriptions_for_those_who_cannot_see_them(page):
    assert page.tags.count("svg") == 3
    assert "99 calls" not in page.text
    assert "109 calls: 85 OK, 10 shed, 14 failed." in page.text
    assert "three of ten fail from 1.0 to 2.0 s" in page.text


def test_the_figures_follow_the_pages_colours(text):
    assert "var(--good)" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "#040a04" not in text


def test_the_same_run_renders_to_the_same_page(report, text):
    assert render(report) == text


def test_the_figures_are_well_formed_xml(text):
    for part in text.split("<svg")[1:]:
        ET.fromstring("<svg" + part[: part.index("</svg>")] + "</svg>")  # noqa: S314 (our own text)


def test_a_run_in_which_nothing_happened_still_makes_a_page(tmp_path):
    empty = History(RunHead("test", 1, "real", 1))
    write(Report("Empty", "", Verdict.COULD_NOT_TELL, empty, (), (), {}, "x"), tmp_path / "report.html")
    assert "could not tell" in Page((tmp_path / "report.html").read_text()).text
