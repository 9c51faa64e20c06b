"""A worker's standing survives what the controller does, and leaving never waits for it."""

import threading
import time
from collections.abc import Iterator

import pytest
from until import until

from expertfleet.membership.registration import Registration
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import membership_pb2 as pb
from expertfleet.transport.io_thread import IoThread


@pytest.fixture
def io() -> Iterator[IoThread]:
    io = IoThread("test-io")
    yield io
    io.stop()


def test_a_refused_report_fails_the_worker_and_not_the_caller(io: IoThread, controller) -> None:
    io.submit(controller.start())
    registration = Registration(io, "expert-0", controller.address, lambda report: None, lambda order: None)
    registration.take("127.0.0.1:1", "ab", "bfloat16")
    controller.refusal = FleetError(Code.BAD_REQUEST, "the seat is taken")
    controller.known.clear()
    registration.enter("draining")
    assert registration.state == "failed"
    assert "the seat is taken" in registration.error
    registration.close()
    io.submit(controller.stop())


def test_a_worker_that_leaves_does_not_wait_for_an_absent_controller(io: IoThread) -> None:
    registration = Registration(io, "expert-0", "127.0.0.1:1", lambda report: None, lambda order: None)
    ended = threading.Event()

    def take() -> None:
        with pytest.raises(InterruptedError):
            registration.take("127.0.0.1:2", "ab", "bfloat16")
        ended.set()

    threading.Thread(target=take, daemon=True).start()
    time.sleep(0.2)
    registration.give_up()
    assert ended.wait(5)
    registration.close()


def test_after_close_nothing_is_reported(io: IoThread, controller) -> None:
    io.submit(controller.start())
    registration = Registration(io, "expert-0", controller.address, lambda report: None, lambda order: None)
    registration.take("127.0.0.1:1", "ab", "bfloat16")
    registration.close()
    before = len(controller.reports)
    time.sleep(1.2)
    assert len(controller.reports) == before
    io.submit(controller.stop())


def test_orders_come_and_are_followed_over_a_new_lease(io: IoThread, controller) -> None:
    controller.orders = [pb.Order(leave=True)]
    io.submit(controller.start())
    orders: list[pb.Order] = []
    registration = Registration(io, "expert-0", controller.address, lambda report: None, orders.append)
    registration.take("127.0.0.1:1", "ab", "bfloat16", capacity=7)
    assert controller.registrations[0].capacity == 7
    until(lambda: len(orders) == 1, 10)
    controller.known.clear()  # as after a restart of the controller
    until(lambda: len(orders) == 2, 10)
    assert controller.followed == [1, 2]
    registration.close()
    io.submit(controller.stop())
