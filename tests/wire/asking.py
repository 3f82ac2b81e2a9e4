"""How tests ask an upstream, and how a raw server answers at once."""

import ngh2

OK = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def answer(peer, event):
    if isinstance(event, (ngh2.RequestReceived, ngh2.DataReceived)) and event.end_stream:
        peer.engine.send_response(event.stream_id, [*OK, (b"grpc-status", b"0")], end_stream=True)


def ask(up, sink):
    started = up.start("a.B/C", (), None, sink)
    started.send_data(b"", end=True)
    return started
