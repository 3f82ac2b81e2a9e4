"""grpcio channels that find their upstream again soon after it comes back."""

from pathlib import Path

import grpc
import grpc.aio

from relay_service.core.policy import UpstreamTls

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


def open_channel(target: str, *, receive_bytes_max: int, tls: UpstreamTls | None = None) -> grpc.aio.Channel:
    """A channel to a gRPC target such as ``127.0.0.1:50052``; connects on its first call.

    Without ``tls`` it speaks in cleartext. Raises OSError when one of its files cannot be read.
    """
    options: list[tuple[str, int | str]] = [*CHANNEL_OPTIONS]
    options.append(("grpc.max_receive_message_length", receive_bytes_max))
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(_read(tls.ca), _read(tls.key), _read(tls.certificate))
    return grpc.aio.secure_channel(target, credentials, options=options)


def _read(name: str) -> bytes | None:
    return Path(name).read_bytes() if name else None
