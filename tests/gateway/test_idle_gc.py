"""Memory is given back when nothing runs, and never while something does."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine

from expertfleet.gateway.idle_gc import Idle, give_back_memory

AFTER_S = 0.1


def counting(check: Callable[[Idle, list[int]], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        calls: list[int] = []
        await check(Idle(lambda: calls.append(1), AFTER_S), calls)

    asyncio.run(run())


def test_once_after_the_last_of_those_that_ran() -> None:
    async def check(idle: Idle, calls: list[int]) -> None:
        await asyncio.sleep(3 * AFTER_S)
        assert calls == [], "nothing has run yet"
        with idle.busy():
            with idle.busy():
                pass
            await asyncio.sleep(3 * AFTER_S)
            assert calls == [], "one runs still"
        assert calls == []
        await asyncio.sleep(5 * AFTER_S)
        assert calls == [1]
        with idle.busy():
            pass
        await asyncio.sleep(5 * AFTER_S)
        assert calls == [1, 1]

    counting(check)


def test_not_if_something_begins_in_the_meantime() -> None:
    async def check(idle: Idle, calls: list[int]) -> None:
        for _ in range(3):
            with idle.busy():
                await asyncio.sleep(3 * AFTER_S)
            await asyncio.sleep(0)
        assert calls == []

    counting(check)


def test_what_refers_to_itself_is_gone_afterwards() -> None:
    class Garbage:
        def __init__(self) -> None:
            self.me = self

    gc.disable()
    try:
        left = weakref.ref(Garbage())
        assert left() is not None
        give_back_memory()
        assert left() is None
    finally:
        gc.enable()
