"""A service behind the listener that keeps its calls, and how raw clients ask it."""

import ngh2


def request(path=b"/a.B/C", content_type=b"application/grpc", method=b"POST", **fields):
    head = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    if content_type:
        head.append((b"content-type", content_type))
    return head + [(name.replace("_", "-").encode(), value) for name, value in fields.items()]


class Call:
    """Keeps what the wire says of a call."""

    def __init__(self, head, reply):
        self.head = head
        self.reply = reply
        self.data = []
        self.ended = False
        self.cancelled = 0
        self.drained = 0

    def on_request_data(self, data, *, end):
        self.data.append(data)
        self.ended = self.ended or end

    def on_cancelled(self):
        self.cancelled += 1

    def on_reply_drained(self):
        self.drained += 1


class Service:
    """A handler that keeps its calls; ``refuse`` answers at the headers."""

    def __init__(self):
        self.calls = []
        self.refuse = None

    def __call__(self, head, reply):
        if self.refuse is not None:
            reply.send_trailers(self.refuse, "no", ())
            return None
        call = Call(head, reply)
        self.calls.append(call)
        return call


def fields_of(peer, stream_id, kind=ngh2.ResponseReceived):
    for event in peer.of(kind):
        if event.stream_id == stream_id:
            return dict(event.headers)
    return None


async def ask(peer, headers, **kwargs):
    stream_id = peer.engine.send_request(headers, end_stream=True)
    peer.flush()
    return await peer.until(lambda: fields_of(peer, stream_id))
