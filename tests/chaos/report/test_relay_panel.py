"""A run's page, beyond the tour's: the relay from inside, broken and slow calls, a way to Jaeger."""

from dataclasses import replace

import pytest

from chaos.findings import Finding, Offender, Verdict
from chaos.history import RelaySample
from chaos.report import render


def sample(number):
    breaker = ("CLOSED", "OPEN", "HALF_OPEN")[number % 3]
    queue = 17 if number == 30 else number % 5
    return RelaySample(number / 10, 0, 0, 0, 0, 0, 0, 0, queue, 4, 10, 0, 0, breaker=breaker)


@pytest.fixture(scope="module")
def watched(report):
    return replace(report, history=replace(report.history, relays=tuple(sample(n) for n in range(50))))


def test_queue_limit_and_breaker_are_drawn_and_told(watched):
    page = render(watched)
    assert "the queue reached 17, the limit lay between 10 and 10" in page
    assert "breaker: CLOSED, OPEN, HALF_OPEN" in page
    assert "attempts under way" in page
    assert "attempts under way" not in render(replace(watched, history=replace(watched.history, relays=())))


def test_a_call_that_broke_a_promise_is_shown_from_inside_first(watched):
    trace = next(iter(watched.traces))
    broken = Finding(
        "I1", "in time", Verdict.BROKEN, "1 of 1", (Offender(30, "op-30", trace, "too late"),), 1
    )
    page = render(replace(watched, findings=(broken,)))
    assert "It broke a promise: too late" in page
    assert page.count('class="waterfall"') == 1


def test_traces_lead_to_jaeger_where_there_is_one(watched):
    trace = next(iter(watched.traces))
    assert "<a href" not in render(watched)
    page = render(replace(watched, jaeger_url="http://127.0.0.1:16686"))
    assert f'href="http://127.0.0.1:16686/trace/{trace}"' in page
