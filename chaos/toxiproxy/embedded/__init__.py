"""An asyncio server that speaks Toxiproxy's HTTP API and breaks connections the way Toxiproxy does.

It is there for machines without the real one, so that nothing but Python is needed to break a network.
It keeps Toxiproxy's contract (codes, bodies, the meaning of each toxic) and leaves out its crashes and
deadlocks; docs/reference/toxiproxy.md names every deliberate difference.
"""

from chaos.toxiproxy.embedded.server import EmbeddedToxiproxy

__all__ = ["EmbeddedToxiproxy"]
