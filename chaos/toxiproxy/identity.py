"""What the two servers call themselves."""

from typing import Final

VERSION: Final = "2.12.0"
"""The Toxiproxy that is installed, and whose API the embedded server speaks."""

EMBEDDED_SERVER: Final = "resilient-relay-embedded-toxiproxy"
"""The embedded server's `Server` header; the real one sends none."""
