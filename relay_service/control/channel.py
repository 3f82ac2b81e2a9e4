"""grpcio channels that find their upstream again soon after it comes back."""

import grpc.aio

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # grpcio's own backoff grows from 1 s to 120 s: an upstream that was away for 10 s is missed for 7 more.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A connection that swallows everything is found dead by its pings. Without the ping timeout, which
    # keepalive alone does not set, that took a minute. Pings are sent only while a call is open.
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 500),
    ("grpc.http2.ping_timeout_ms", 500),
    # Channels to one target would share one connection, and with it each other's fate.
    ("grpc.use_local_subchannel_pool", 1),
    # Retries are made on evidence by whoever calls, never hidden inside the channel.
    ("grpc.enable_retries", 0),
)


def open_channel(target: str, *, receive_bytes_max: int) -> grpc.aio.Channel:
    """A plaintext channel to a gRPC target such as ``127.0.0.1:50052``; connects on its first call."""
    options = [*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", receive_bytes_max)]
    return grpc.aio.insecure_channel(target, options=options)
