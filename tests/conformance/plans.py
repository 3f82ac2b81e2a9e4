"""What a call does, as a value: drawn by Hypothesis, carried out by `tests.conformance.programmable`."""

from dataclasses import dataclass, field
from enum import StrEnum

import grpc
from hypothesis import strategies as st

Metadata = tuple[tuple[str, str | bytes], ...]

SIZE_BYTES_MAX = 300_000
DEADLINE_S = 0.3


class Kind(StrEnum):
    """gRPC's four kinds of methods; the value is the method's name."""

    UNARY = "Unary"
    COLLECT = "Collect"
    EXPAND = "Expand"
    CHAT = "Chat"

    @property
    def requests_stream(self) -> bool:
        """Whether the client may send any number of messages."""
        return self in (Kind.COLLECT, Kind.CHAT)

    @property
    def responses_stream(self) -> bool:
        """Whether the server may."""
        return self in (Kind.EXPAND, Kind.CHAT)


class Ending(StrEnum):
    """Who ends the call."""

    STATUS = "the server, with a status"
    CANCEL = "the client, by cancelling while the server hangs"
    DEADLINE = "the clock, while the server hangs"


@dataclass(frozen=True)
class Plan:
    """One call. Sizes are of messages, in bytes; their content follows from size and place."""

    kind: Kind
    ending: Ending = Ending.STATUS
    requests: tuple[int, ...] = (0,)
    metadata: Metadata = ()
    compress_requests: bool = False
    requests_read: int | None = None
    """How many the server reads before it answers; None for all. Only for streaming requests."""
    lockstep: bool = False
    """The client sends a request only when the response to the one before has come. Only for CHAT."""
    headers: Metadata | None = None
    """Initial metadata that the server sends explicitly; None leaves it to the first message."""
    responses: tuple[int, ...] = ()
    compress_responses: bool = False
    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    trailers: Metadata = field(default=())

    @property
    def ends_early(self) -> bool:
        """Whether the server may end the call without having read the end of what the client sends."""
        return self.requests_read is not None


# Sizes around what changes on the wire: nothing, a frame, a window, the replay buffer.
_SIZES = st.one_of(
    st.integers(0, 200),
    st.sampled_from((16_379, 16_384, 65_535, 65_536)),
    st.integers(0, SIZE_BYTES_MAX),
)

# What applications may use: not gRPC's own names, not HTTP's, not the relay's.
_NAMES = st.from_regex(r"x-[a-z0-9_.-]{1,12}", fullmatch=True).filter(lambda name: not name.endswith("-bin"))
_ASCII_VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40).filter(
    lambda value: value == value.strip()
)
_FIELDS = st.one_of(
    st.tuples(_NAMES, _ASCII_VALUES),
    st.tuples(_NAMES.map(lambda name: f"{name}-bin"), st.binary(max_size=60)),
)
# Names often repeated: several values of one name keep their order.
_REPEATED = st.tuples(st.sampled_from(("x-twice", "x-dot.ted")), _ASCII_VALUES)
_METADATA = st.lists(st.one_of(_FIELDS, _REPEATED), max_size=6).map(tuple)

# A space at either end is a case of its own: see test_a_message_may_begin_or_end_with_a_space.
_MESSAGES = st.one_of(
    st.just(""),
    st.sampled_from(("schön kaputt", "100 %", "%41", "two\nlines", "日本語", "\x00\x7f")),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=60).map(lambda text: text.strip(" ")),
)
_CODES = st.one_of(st.just(grpc.StatusCode.OK), st.sampled_from(list(grpc.StatusCode)))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Calls of all kinds, endings, sizes, metadata and statuses."""
    kind = draw(st.sampled_from(Kind))
    ending = draw(st.sampled_from((Ending.STATUS,) * 8 + (Ending.CANCEL, Ending.DEADLINE)))
    lockstep = kind is Kind.CHAT and ending is Ending.STATUS and draw(st.booleans())
    requests = draw(st.lists(_SIZES, max_size=6).map(tuple)) if kind.requests_stream else (draw(_SIZES),)
    responses = _drawn_responses(draw, kind, ending, len(requests) if lockstep else None)
    code = draw(_CODES)
    if kind in (Kind.UNARY, Kind.COLLECT) and ending is Ending.STATUS:
        # One message and OK, or none and an error: all else these methods cannot say.
        responses = (draw(_SIZES),) if code is grpc.StatusCode.OK else ()
    early = kind.requests_stream and not lockstep and ending is Ending.STATUS and draw(st.integers(0, 3)) == 0
    return Plan(
        kind=kind,
        ending=ending,
        requests=requests,
        metadata=draw(_METADATA),
        compress_requests=draw(st.booleans()),
        requests_read=draw(st.integers(0, len(requests))) if early else None,
        lockstep=lockstep,
        headers=draw(st.one_of(st.none(), _METADATA)),
        responses=responses,
        # grpcio, with nothing between, sometimes hands out the compressed bytes of a call that ends early.
        compress_responses=not early and draw(st.booleans()),
        code=code,
        message=draw(_MESSAGES),
        trailers=draw(_METADATA),
    )


def _drawn_responses(draw: st.DrawFn, kind: Kind, ending: Ending, exactly: int | None) -> tuple[int, ...]:
    if not kind.responses_stream:
        return ()
    if exactly is not None:
        return tuple(draw(_SIZES) for _ in range(exactly))
    # Before a hanging end they must all arrive in time.
    sizes = _SIZES if ending is Ending.STATUS else st.integers(0, 1_000)
    return draw(st.lists(sizes, max_size=6).map(tuple))
