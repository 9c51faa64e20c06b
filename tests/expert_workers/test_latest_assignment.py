import threading

from expertfleet.expert_workers.latest_assignment import LatestAssignment
from expertfleet.membership.epoch import ExpertSet

ONE, TWO = (ExpertSet.from_pairs([(0, expert)], 1, 4) for expert in (1, 2))


def test_only_the_newest_order_counts() -> None:
    orders = LatestAssignment()
    orders.put(ONE)
    orders.put(TWO)
    assert orders.take() == TWO
    assert not orders.is_stale()
    orders.put(TWO)
    assert not orders.is_stale()
    orders.put(ONE)
    assert orders.is_stale()
    assert orders.wait_until_stale(0)
    assert orders.take() == ONE
    assert not orders.wait_until_stale(0.01)


def test_the_end_wakes_whoever_waits() -> None:
    orders, taken = LatestAssignment(), []
    orders.put(ONE)
    assert orders.take() == ONE
    waiting = threading.Thread(target=lambda: taken.append(orders.take()))
    waiting.start()
    orders.close()
    waiting.join(5)
    assert taken == [None]
    assert orders.is_stale()
