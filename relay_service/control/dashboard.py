"""The page for people: how the relay is and what it has done, from the same values as AdminService."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from relay_service.control.descriptors import UpstreamDescriptors
from relay_service.control.sources import HealthSource, Stats, StatsSource
from relay_service.telemetry.metrics import CallTotals

REFRESH_S = 2


@dataclass(frozen=True, slots=True)
class Share:
    """One term of the conservation law as a piece of a bar that is 100 wide."""

    name: str
    count: int
    start: float
    width: float


class Dashboard:
    """Renders the page."""

    def __init__(
        self,
        *,
        health: HealthSource,
        stats: StatsSource,
        upstreams: Sequence[UpstreamDescriptors],
        version: str,
    ) -> None:
        self._health = health
        self._stats = stats
        self._upstreams = upstreams
        self._version = version
        templates = Environment(
            loader=PackageLoader("relay_service.control"),
            autoescape=select_autoescape(),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        templates.filters["milliseconds"] = milliseconds
        templates.filters["period"] = period
        self._page = templates.get_template("dashboard.html")

    def render(self, nonce: str) -> str:
        """The whole page as HTML; ``nonce`` is what its content security policy knows its own script by."""
        stats: Stats = self._stats.stats()
        return self._page.render(
            nonce=nonce,
            refresh_s=REFRESH_S,
            version=self._version,
            health=self._health.health(),
            stats=stats,
            shares=list(shares(stats.calls)),
            reasons=sorted(stats.calls.by_reason.items(), key=lambda item: (-item[1], item[0])),
            descriptors={upstream.name: upstream for upstream in self._upstreams},
        )


def shares(calls: CallTotals) -> Iterator[Share]:
    """The five terms that ``received`` is the sum of, laid end to end."""
    whole = max(calls.received, 1)
    start = 0.0
    terms = {
        "ok": calls.ok,
        "errors": calls.errors,
        "refused": calls.refused,
        "cancelled": calls.cancelled,
        "in flight": calls.in_flight,
    }
    for name, count in terms.items():
        width = 100 * count / whole
        yield Share(name, count, start, width)
        start += width


def milliseconds(seconds: float) -> str:
    """A latency to three figures, in ms."""
    ms = seconds * 1000
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def period(seconds: float) -> str:
    """A time span in its two largest units."""
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"
