"""Times between seconds and protobuf."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def duration(seconds: float) -> Duration:
    """Seconds as a protobuf duration, to the nanosecond."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def timestamp(unix_s: float) -> Timestamp:
    """Unix seconds as a protobuf timestamp."""
    message = Timestamp()
    message.FromNanoseconds(round(unix_s * 1e9))
    return message


def seconds(message: Duration | Timestamp) -> float:
    """A protobuf duration, or a timestamp as Unix seconds."""
    return message.seconds + message.nanos / 1e9
