"""Rows of a trace: under their parents, inside the width, coloured by who did it."""

from dataclasses import replace

import pytest

from chaos.report.waterfall import ROWS_MAX, waterfall


def test_rows_stand_under_their_parents_and_lie_where_they_happened(history, spans):
    picture = waterfall(history.calls[29], spans)
    assert [(row.depth, row.lane) for row in picture.rows] == [
        (0, "client"),
        (1, "relay"),
        (2, "relay"),
        (2, "relay"),
        (3, "downstream"),
    ]
    assert picture.total_ms == pytest.approx(100)
    assert [(row.left_percent, row.width_percent) for row in picture.rows] == [
        (0, 100),
        (2, 96),
        (5, 20),
        (60, 35),
        (65, 25),
    ]


def test_the_failed_attempt_is_marked_with_its_status(history, spans):
    rows = waterfall(history.calls[29], spans).rows
    assert [(row.failed, row.status) for row in rows if row.depth == 2] == [
        (True, "UNAVAILABLE"),
        (False, "OK"),
    ]


def test_a_span_too_short_to_see_still_gets_a_bar_inside_the_width(history, spans):
    instant = replace(spans[-1], span_id="d1", begin_unix_ns=100_000_000, end_unix_ns=100_000_000)
    row = waterfall(history.calls[29], [*spans, instant]).rows[-1]
    assert row.width_percent > 0
    assert row.left_percent + row.width_percent <= 100


def test_a_huge_trace_is_cut_and_says_so(history, spans):
    many = [replace(spans[-1], span_id=f"e{n}") for n in range(ROWS_MAX)]
    picture = waterfall(history.calls[29], [*spans[:-1], *many])
    assert (len(picture.rows), picture.hidden) == (ROWS_MAX, 4)


def test_no_spans_make_no_picture(history):
    assert waterfall(history.calls[0], []) is None
