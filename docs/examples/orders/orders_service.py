"""A small order service as one might have it: a line in a file for each order, one order for each key."""

import argparse
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from generated import orders_pb2, orders_pb2_grpc


class Orders(orders_pb2_grpc.OrdersServicer):
    """The books are a file with a line "key order" for each order. No key is entered twice."""

    def __init__(self, books: Path) -> None:
        self._books = books
        self._lock = threading.Lock()

    def Place(self, request, context):
        key = dict(context.invocation_metadata()).get("idempotency-key", "")
        with self._lock:
            keys = [entry[0] for entry in read_books(self._books)]
            if key in keys:
                return orders_pb2.PlaceResponse(number=keys.index(key) + 1)
            with self._books.open("a", encoding="utf-8") as books:
                books.write(f"{key or '-'} {request.order}\n")
            return orders_pb2.PlaceResponse(number=len(keys) + 1)

    def Count(self, request, context):
        with self._lock:
            return orders_pb2.CountResponse(orders=len(read_books(self._books)))


def read_books(path: Path) -> list[list[str]]:
    """Key and order of each entry, in the order of their coming."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line.split() for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--books", type=Path, required=True)
    options = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    orders_pb2_grpc.add_OrdersServicer_to_server(Orders(options.books), server)
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
