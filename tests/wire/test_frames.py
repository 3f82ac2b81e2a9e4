"""Callers that go on with what they have ended, count backwards, or open windows too far."""

import asyncio
import itertools
import struct

import ngh2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_service.core.status import Code
from relay_service.message import frame
from relay_service.wire.frames import ENDED_STREAMS_MAX, PREFACE_BYTES, CutOff, FrameWatch, Offence, Widening
from relay_service.wire.h2 import ErrorCode
from tests.wire.service import ask, fields_of, request

DATA, HEADERS, PRIORITY, RST_STREAM, WINDOW_UPDATE = 0, 1, 2, 3, 8
END_STREAM, END_HEADERS = 1, 4


def raw(kind, stream_id, payload=b"", flags=0):
    """A frame as bytes; the payload of HEADERS is never looked at."""
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 255, kind, flags, stream_id) + payload


def headers(stream_id, flags=END_STREAM):
    return raw(HEADERS, stream_id, b"h" * 30, flags | END_HEADERS)


def window(stream_id, increment):
    return raw(WINDOW_UPDATE, stream_id, increment.to_bytes(4, "big"))


def watch():
    """One that has seen the preface."""
    made = FrameWatch()
    assert made.look(bytes(PREFACE_BYTES), ()) is None
    return made


def looked(chunks, streams=()):
    """What a watch says of each chunk."""
    made = watch()
    return [made.look(chunk, streams) for chunk in chunks]


def test_what_callers_do_is_passed_on():
    calls = headers(1) + headers(3, 0) + raw(DATA, 3, b"x" * 20_000) + raw(DATA, 3, b"", END_STREAM)
    rest = (
        raw(4, 0)
        + raw(6, 0, bytes(8))
        + window(3, 65_535)
        + window(0, 2**31 - 1)
        + raw(PRIORITY, 3, bytes(5))
    )
    assert (
        looked([calls + rest, raw(RST_STREAM, 1, bytes(4)), window(1, 1), headers(5)], {1, 3}) == [None] * 4
    )


@pytest.mark.parametrize("late", [headers(1), raw(DATA, 1, b"x"), raw(DATA, 1, b"", END_STREAM)])
@pytest.mark.parametrize("end", [headers(1), headers(1, 0) + raw(DATA, 1, b"", END_STREAM)])
def test_a_stream_that_is_over_may_not_go_on(end, late):
    found = looked([end, window(1, 7) + late], streams=())[1]
    assert isinstance(found, Offence)
    assert (found.at, found.code) == (13, ErrorCode.STREAM_CLOSED)


@pytest.mark.parametrize("late", [headers(1), raw(DATA, 1, b"x")])
def test_a_stream_that_was_reset_by_its_caller_may_not_go_on_although_we_know_it_yet(late):
    found = looked([headers(1, 0) + raw(RST_STREAM, 1, bytes(4)) + late], streams={1})[0]
    assert isinstance(found, Offence)
    assert found.code is ErrorCode.STREAM_CLOSED


def test_while_we_have_not_ended_a_stream_what_comes_late_on_it_is_the_engines_affair():
    assert looked([headers(1), raw(DATA, 1, b"x")], streams={1}) == [None, None]
    assert looked([headers(1) + raw(DATA, 1, b"x")]) == [None]


def test_what_comes_on_a_stream_that_only_we_have_ended_is_no_offence():
    # Refused or reset by us: the caller may not have heard of it.
    assert looked([headers(1, 0), raw(DATA, 1, b"x") + headers(1)], streams=()) == [None, None]


def test_stream_ids_may_be_skipped_but_not_used_later():
    (found,) = looked([headers(1) + headers(7) + headers(5)], streams=())
    assert found == Offence(
        2 * len(headers(1)), ErrorCode.PROTOCOL_ERROR, "a stream id lower than one before"
    )


def test_priority_belongs_to_a_stream():
    (found,) = looked([raw(PRIORITY, 0, bytes(5))])
    assert isinstance(found, Offence)
    assert found.code is ErrorCode.PROTOCOL_ERROR


def test_a_large_increment_is_shown_and_the_look_goes_on_behind_it():
    made = watch()
    chunk = headers(1, 0) + window(1, 2**24 - 1) + window(1, 2**24) + raw(PRIORITY, 0, bytes(5))
    found = made.look(chunk, {1})
    at = len(headers(1)) + 13
    assert found == Widening(at, at + 13, 1, 2**24)
    again = made.look(chunk[found.end :], {1})
    assert isinstance(again, Offence)
    assert again.at == 0


def test_ended_streams_are_remembered_up_to_a_number():
    made = watch()
    for stream_id in range(1, 20 * ENDED_STREAMS_MAX, 2):
        made.look(headers(stream_id) + raw(RST_STREAM, stream_id, bytes(4)), ())
        assert len(made._ended) <= ENDED_STREAMS_MAX
        assert len(made._reset) <= ENDED_STREAMS_MAX


def walked(pieces):
    """What was let through, what was held back, and what was told, each with where it was; to the end or to
    the first offence."""
    made, let_through, held, told = watch(), b"", b"", []
    for piece in pieces:
        rest, held = held + piece, b""
        while (found := made.look(rest, ())) is not None:
            let_through += rest[: found.at]
            if isinstance(found, Offence):
                return let_through, b"", [*told, (len(let_through), found.code)]
            if isinstance(found, CutOff):
                held = rest = rest[found.at :]
                break
            told.append((len(let_through), found.increment_bytes))
            let_through += rest[found.at : found.end]
            rest = rest[found.end :]
        else:
            let_through += rest
    return let_through, held, told


@given(data=st.data())
def test_however_frames_are_cut_the_same_is_found(data):
    calls = [headers(n, 0) + raw(DATA, n, b"x" * (n % 40), END_STREAM) + window(n, n) for n in range(1, 9, 2)]
    offence, code = data.draw(
        st.sampled_from(
            [
                (b"", None),
                (raw(PRIORITY, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
                (raw(RST_STREAM, 3, bytes(4)) + raw(DATA, 3, b"x"), ErrorCode.STREAM_CLOSED),
            ]
        )
    )
    in_order = b"".join(calls) + window(7, 2**31 - 1)
    stream = in_order + offence
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=20)))
    let_through, held, told = walked([stream[a:b] for a, b in itertools.pairwise([0, *cuts, len(stream)])])
    assert told[0] == (len(in_order) - 13, 2**31 - 1)
    assert [what for _, what in told[1:]] == ([code] if code else [])
    assert stream.startswith(let_through + held)
    assert let_through.startswith(in_order)


async def test_a_caller_that_goes_on_after_its_end_loses_its_connection_and_no_other_does(
    listen, service, raw_client, eventually
):
    service.refuse = Code.OK
    listener = await listen()
    neighbour = await raw_client(listener.addresses[0])
    peer = await raw_client(listener.addresses[0])
    await ask(peer, request())
    await eventually(lambda: listener.streams == 0)
    peer.writer.write(raw(DATA, 1, b"x"))
    await peer.until(lambda: peer.eof)
    assert peer.of(ngh2.GoAwayReceived)[-1].error_code == ErrorCode.STREAM_CLOSED
    assert "had ended" in listener.counters.last_failure
    assert (await ask(neighbour, request()))[b"grpc-status"] == b"0"


async def test_frames_before_the_offence_are_heard(listen, service, raw_client):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    stream_id = peer.engine.send_request(request())
    peer.engine.send_data(stream_id, frame(b"abc"))
    peer.writer.write(peer.engine.data_to_send() + raw(PRIORITY, 0, bytes(5)) + raw(DATA, stream_id, b"late"))
    await peer.until(lambda: peer.eof)
    assert peer.of(ngh2.GoAwayReceived)[-1].error_code == ErrorCode.PROTOCOL_ERROR
    assert b"".join(service.calls[0].data) == frame(b"abc")
    assert service.calls[0].cancelled == 1


async def test_a_stream_window_that_overflows_costs_that_stream_only(listen, service, raw_client, eventually):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    greedy, other = (peer.engine.send_request(request(), end_stream=True) for _ in range(2))
    peer.flush()
    await eventually(lambda: len(service.calls) == 2)
    # Wide, but not too wide; then both in one write.
    peer.writer.write(window(other, 2**30) + window(greedy, 2**31 - 1) + window(other, 1))
    await peer.until(lambda: peer.of(ngh2.StreamReset))
    assert [(one.stream_id, one.error_code) for one in peer.of(ngh2.StreamReset)] == [
        (greedy, ErrorCode.FLOW_CONTROL_ERROR)
    ]
    assert service.calls[0].cancelled == 1
    reply = service.calls[1].reply
    reply.send_headers(())
    reply.send_data(frame(bytes(100_000)))
    reply.send_trailers(Code.OK, "", ())
    peer.engine.set_local_window_size(200_000, stream_id=other)
    peer.engine.set_local_window_size(200_000)
    peer.flush()
    trailers = await peer.until(lambda: fields_of(peer, other, ngh2.TrailersReceived))
    assert trailers[b"grpc-status"] == b"0"


async def test_a_frame_that_comes_byte_by_byte_is_heard(listen, service, raw_client, eventually):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    stream_id = peer.engine.send_request(request())
    peer.engine.send_data(stream_id, frame(b"abc"), end_stream=True)
    for byte in peer.engine.data_to_send() + window(stream_id, 5):
        peer.writer.write(bytes([byte]))
        await asyncio.sleep(0)
    await eventually(lambda: service.calls and service.calls[0].ended)
    assert b"".join(service.calls[0].data) == frame(b"abc")
    service.calls[0].reply.send_trailers(Code.OK, "", ())
