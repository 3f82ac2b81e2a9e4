# ruff: noqa: INP001 (a program of the image, not a module)
"""Is the service in this container ready? For health checks of images without a shell, curl or grpcurl.

    healthcheck.py http http://127.0.0.1:9464/readyz     any 2xx answer
    healthcheck.py grpc 127.0.0.1:50052                  grpc.health.v1 says SERVING

Exit status 0 when ready, 1 when not, within `TIMEOUT_S`; the reason goes to stderr, which the engine keeps.
"""

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 3.0


def check_http(url: str) -> str | None:
    """None when the answer is a 2xx, else why not."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S):  # noqa: S310 (main lets only http:// through)
            return None
    except urllib.error.HTTPError as error:
        return f"{url}: {error.code} {error.read(500).decode(errors='replace')}"
    except OSError as error:
        return f"{url}: {error}"


def check_grpc(address: str) -> str | None:
    """None when the server as a whole is SERVING, else why not."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            return f"{address}: {error.code().name}: {error.details()}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return None if status == "SERVING" else f"{address}: {status}"


def main(arguments: list[str]) -> int:
    """Check what the command line names."""
    match arguments:
        case ["http", url] if url.startswith("http://"):
            problem = check_http(url)
        case ["grpc", address]:
            problem = check_grpc(address)
        case _:
            problem = "usage: healthcheck.py http http://HOST:PORT/PATH | grpc HOST:PORT"
    if problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
