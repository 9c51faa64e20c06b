"""A worker ends once, and everybody who asked learns how."""

import asyncio
import threading

from expertfleet.membership.ending import Ending


class Work:
    """Counts what an ending does to it; draining takes until ``idle``."""

    def __init__(self) -> None:
        self.idle = threading.Event()
        self.num_shut_down = 0
        self.ending = Ending(lambda seconds: self.idle.wait(seconds), self.shut_down)

    def shut_down(self) -> None:
        self.num_shut_down += 1


def test_many_askers_get_one_end_and_one_answer() -> None:
    work, answers = Work(), []
    threads = [threading.Thread(target=lambda: answers.append(work.ending.run(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert work.ending.begun.wait(5)
    work.idle.set()
    for thread in threads:
        thread.join(5)
    work.ending.wait()
    assert answers == [True] * 4
    assert work.num_shut_down == 1


def test_work_that_takes_too_long_is_told() -> None:
    work = Work()
    assert work.ending.run(0.01) is False
    assert work.num_shut_down == 1


def test_a_drain_call_whose_caller_goes_still_ends_the_process() -> None:
    work = Work()

    async def leave() -> None:
        asking = asyncio.create_task(work.ending.asked(10))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(leave())
    work.idle.set()
    work.ending.wait()
    assert work.num_shut_down == 1


def test_a_drain_call_is_answered() -> None:
    work = Work()
    work.idle.set()
    assert asyncio.run(work.ending.asked(10)) is True
    work.ending.wait()
