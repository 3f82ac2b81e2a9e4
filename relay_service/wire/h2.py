"""HTTP/2 as the relay uses it: the one module that knows the engine (ngh2, over libnghttp2).

The engine turns received bytes into events and calls into bytes to send; it frames, compresses
headers, keeps the flow-control windows and refuses what the RFCs forbid. Everything else in this
package sees only the names below, so the engine could be replaced here.

Two of its habits shape the callers:

- Events come out of `Engine.receive_data` and out of `Engine.data_to_send` (a stream whose last frame
  was just serialised is closed there), so `Engine.events` is read after both.
- After a connection error it may be dead at once and then cannot write its own GOAWAY; `goaway_frame`
  writes one by hand.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from ngh2 import (
    Configuration,
    ConnectionClosed,
    ConnectionClosingError,
    ConnectionStateError,
    DataReceived,
    DenialOfServiceError,
    ErrorCode,
    Event,
    GoAwayReceived,
    InformationalResponseReceived,
    NoAvailableStreamIDError,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    ResponseReceived,
    Role,
    Setting,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from ngh2 import Connection as Engine
from ngh2 import NGH2Error as EngineError

__all__ = [
    "ALPN",
    "FRAME_BYTES_MAX",
    "USED_UP",
    "ConnectionClosed",
    "DataReceived",
    "DenialOfServiceError",
    "Engine",
    "EngineError",
    "ErrorCode",
    "Event",
    "GoAwayReceived",
    "InformationalResponseReceived",
    "Limits",
    "PingAcknowledged",
    "PingReceived",
    "RequestReceived",
    "ResponseReceived",
    "Setting",
    "SettingsReceived",
    "StreamClosed",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
    "allow_streams",
    "client_engine",
    "error_name",
    "goaway_frame",
    "header_block_bytes",
    "server_engine",
]

USED_UP = (ConnectionClosingError, ConnectionStateError, NoAvailableStreamIDError)
"""What `Engine.send_request` raises, and a stream closed unsent carries, when the connection can open no
more streams; any other error lies with the request."""

ALPN = "h2"
"""The protocol that TLS must have agreed on (RFC 9113 section 3.2)."""

FRAME_BYTES_MAX = 16_384
"""Largest DATA frame we accept: the protocol's default, so a partial frame holds back little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may ask of us. Beyond the engine's own limits the connection is closed with a
    GOAWAY; beyond `streams_max` a stream is refused.

    The connection window is a multiple of the stream window, so that callers who read slowly (and whose
    streams therefore keep their windows closed) do not stall the others on the same connection.
    """

    streams_max: int = 1_000
    """Concurrent streams the peer may open (SETTINGS_MAX_CONCURRENT_STREAMS)."""
    stream_window_bytes: int = 256 * 1024
    """Most bytes held of one stream that nobody has taken yet."""
    connection_window_bytes: int = 64 * 1024 * 1024
    """Most bytes held of all streams of a connection."""
    header_list_bytes: int = 64 * 1024
    """Decoded size (RFC 9113: 32 bytes per field on top) at which a header block ends the connection:
    an HPACK bomb is small on the wire only."""
    header_list_advertised_bytes: int = 32 * 1024
    """What peers are told (SETTINGS_MAX_HEADER_LIST_SIZE); the well-behaved refuse larger calls then."""
    header_block_sent_bytes: int = 128 * 1024
    """Largest header block we send; the engine closes a stream whose block is larger, unsent."""
    header_fields: int = 256
    continuations: int = 8
    """CONTINUATION frames after one HEADERS frame."""
    settings_entries: int = 32
    """Entries in one SETTINGS frame."""
    acks_queued: int = 1_000
    """Unsent acknowledgements of PING and SETTINGS, for a peer that sends them and does not read."""
    resets_burst: int = 10_000
    resets_per_s: int = 1_000
    """RST_STREAM frames from a client ("rapid reset"). Callers of a relay under overload cancel by the
    hundred a second when their deadlines pass, so this is well above the engine's default of 33."""
    glitches_burst: int = 10_000
    glitches_per_s: int = 1_000
    """Frames that are legal but odd: for streams that are closed, unknown or malformed."""
    control_frames_per_s: int = 10_000
    """PING, SETTINGS, WINDOW_UPDATE and empty DATA frames, beyond one per 128 bytes that we send."""


def _configuration(limits: Limits) -> Configuration:
    return Configuration(
        auto_window_update=False,
        max_outbound_ack=limits.acks_queued,
        max_settings=limits.settings_entries,
        stream_reset_rate_limit=(limits.resets_burst, limits.resets_per_s),
        glitch_rate_limit=(limits.glitches_burst, limits.glitches_per_s),
        max_continuations=limits.continuations,
        max_inbound_header_list_size=limits.header_list_bytes,
        max_inbound_header_count=limits.header_fields,
        max_send_header_block_length=limits.header_block_sent_bytes,
    )


def server_engine(limits: Limits) -> Engine:
    """The accepting side; its first output holds our SETTINGS and opens the connection window."""
    engine = Engine(Role.SERVER, _configuration(limits))
    engine.initiate_connection(
        {
            Setting.MAX_CONCURRENT_STREAMS: limits.streams_max,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            Setting.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
            Setting.MAX_HEADER_LIST_SIZE: limits.header_list_advertised_bytes,
        }
    )
    engine.set_local_window_size(limits.connection_window_bytes)
    return engine


def allow_streams(engine: Engine, streams_max: int) -> None:
    """Tell the peer that it may open so many streams at once."""
    engine.update_settings({Setting.MAX_CONCURRENT_STREAMS: streams_max})


def client_engine(limits: Limits) -> Engine:
    """The calling side; its first output holds the preface, our SETTINGS and opens the connection window."""
    engine = Engine(Role.CLIENT, _configuration(limits))
    engine.initiate_connection(
        {
            Setting.ENABLE_PUSH: 0,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            Setting.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
            Setting.MAX_HEADER_LIST_SIZE: limits.header_list_advertised_bytes,
        }
    )
    engine.set_local_window_size(limits.connection_window_bytes)
    return engine


def header_block_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """At most so many bytes the headers take on the wire, compressed as badly as can be (RFC 7541)."""
    return 12 + sum([12 + len(name) + len(value) for name, value in headers])


def goaway_frame(last_stream_id: int, error_code: int, debug: bytes = b"") -> bytes:
    """A GOAWAY frame (RFC 9113 section 6.8), for when the engine is beyond writing one."""
    length = 8 + len(debug)
    head = struct.pack(">BHBBL", length >> 16, length & 0xFFFF, 0x07, 0, 0)
    return head + struct.pack(">LL", last_stream_id & 0x7FFFFFFF, error_code) + debug


def error_name(error_code: int) -> str:
    """``CANCEL`` for 8; the number itself when the code is unknown."""
    try:
        return ErrorCode(error_code).name
    except ValueError:
        return f"error code {error_code}"
