"""What the order service is worth behind the relay while its network and it itself are broken."""

import pytest
from generated import orders_pb2, orders_pb2_grpc
from orders_service import read_books

ORDERS = 20
TIMEOUT_S = 10


@pytest.fixture
def way(chaos_lab, service):
    """To the service, through Toxiproxy."""
    return chaos_lab.proxied(service)


@pytest.fixture
def stub(chaos_lab, way, policy):
    """An ordinary stub on a recorded channel to a relay that goes that way."""
    relay = chaos_lab.relay(way, policy)
    with chaos_lab.history.channel(relay.address) as channel:
        yield orders_pb2_grpc.OrdersStub(channel)


def placing(stub, number):
    """Begin to place an order under its key; the answer is awaited later."""
    return stub.Place.future(
        orders_pb2.PlaceRequest(order=f"order-{number}", item="tea"),
        timeout=TIMEOUT_S,
        metadata=[("idempotency-key", f"order-{number}")],
    )


def placed(books):
    """The orders that the service really has."""
    return [order for _, order in read_books(books)]


def test_orders_survive_connections_that_are_cut_under_them(chaos_lab, way, stub, books):
    with way.latency(20):
        for number in range(ORDERS):
            call = placing(stub, number)
            if number % 4 == 0:
                with way.timeout(0):
                    pass  # taking this toxic away closes every connection, whatever is under way on it
            call.exception()
    chaos_lab.history.assert_success_at_least(1.0, minimum=ORDERS)
    chaos_lab.history.assert_at_most_one_effect(placed(books))
    chaos_lab.history.assert_answers_match_effects(placed(books))


def test_orders_survive_the_death_of_the_service(chaos_lab, service, stub, books):
    for number in range(ORDERS):
        if number == ORDERS // 2:
            with service.killed():
                call = placing(stub, number)
        else:
            call = placing(stub, number)
        call.exception()
    chaos_lab.history.assert_success_at_least(1.0, minimum=ORDERS)
    chaos_lab.history.assert_at_most_one_effect(placed(books))


def test_every_call_is_answered_by_its_deadline_while_the_network_swallows_everything(chaos_lab, way, stub):
    stub.Count(orders_pb2.CountRequest(), timeout=TIMEOUT_S)
    with way.blackhole():
        for _ in range(3):
            stub.Count.future(orders_pb2.CountRequest(), timeout=0.5).exception()
    chaos_lab.history.assert_answered_in_time()
