"""The choice among attention workers."""

import asyncio
from collections.abc import Callable

import pytest

from expertfleet.gateway.engine.affinity import BLOCK, SeenPrefixes, block_hashes
from expertfleet.gateway.engine.backend import Backend
from expertfleet.membership.epoch import Epoch, EpochId, Member
from expertfleet.proto.errors import FleetError


def epoch(*members: tuple[str, str]) -> Epoch:
    attention = tuple(Member(f"attention-{i}", address, numerics) for i, (address, numerics) in enumerate(members))
    return Epoch(EpochId(1, 1), "", "", (), attention, True)


def with_backend(check: Callable[[Backend], None], *members: tuple[str, str]) -> None:
    async def body() -> None:
        backend = Backend()
        backend.update(epoch(*members))
        check(backend)
        await backend.close()

    asyncio.run(body())


PAIR = (("127.0.0.1:1", "a"), ("127.0.0.1:2", "b"))


def test_idle_workers_take_turns() -> None:
    def check(backend: Backend) -> None:
        assert {backend.pick([1]).address for _ in range(2)} == {"127.0.0.1:1", "127.0.0.1:2"}

    with_backend(check, *PAIR)


def test_a_known_prefix_wins_until_its_worker_is_too_busy() -> None:
    def check(backend: Backend) -> None:
        prompt = list(range(BLOCK * 3))
        home = backend.pick(prompt)
        assert all(backend.pick([*prompt, 7]) is home for _ in range(5))
        assert {backend.pick([*prompt, 7], salt="other").address for _ in range(4)} != {home.address}
        home.running.update(dict.fromkeys(range(5), 1))
        assert backend.pick(prompt) is not home

    with_backend(check, *PAIR)


def test_of_workers_with_as_many_sequences_the_one_with_less_to_read_is_chosen() -> None:
    def check(backend: Backend) -> None:
        first, second = backend.workers
        with backend.running(first, "long", 4000), backend.running(second, "short", 32):
            assert [backend.pick([1]) for _ in range(3)] == [second] * 3
            with backend.running(second, "shorter", 3):
                assert backend.pick([1]) is first
        assert first.num_tokens == second.num_tokens == 0

    with_backend(check, *PAIR)


def test_numerics_and_avoided_workers_limit_the_choice() -> None:
    def check(backend: Backend) -> None:
        second = backend.pick([1], numerics="b")
        assert second.address == "127.0.0.1:2"
        assert backend.pick([1], avoid={second}).address == "127.0.0.1:1"
        with pytest.raises(FleetError, match="no other attention worker of numerics class 'b'"):
            backend.pick([1], numerics="b", avoid={second})

    with_backend(check, *PAIR)


def test_a_worker_that_left_finishes_what_it_runs_before_its_channel_closes() -> None:
    def check(backend: Backend) -> None:
        leaving = backend.workers[0]
        with backend.running(leaving, object(), 7):
            backend.update(epoch(PAIR[1]))
            assert [worker.address for worker in backend.workers] == ["127.0.0.1:2"]
            assert leaving.retired
            assert leaving.num_running == 1

    with_backend(check, *PAIR)


def test_hashes_depend_on_everything_before_and_the_salt() -> None:
    prompt = list(range(BLOCK * 4))
    changed = [9, *prompt[1:]]
    assert block_hashes(prompt, "")[-1] != block_hashes(changed, "")[-1]
    assert block_hashes(prompt, "")[0] != block_hashes(prompt, "x")[0]
    assert block_hashes(prompt[:-1], "") == block_hashes(prompt, "")[:3]
    seen = SeenPrefixes()
    seen.add(block_hashes(prompt[: BLOCK * 2], ""))
    assert seen.num_matching(block_hashes(prompt, "")) == 2
    assert seen.num_matching(block_hashes(changed, "")) == 0


def test_a_prefix_stays_known_while_others_take_some_of_its_places() -> None:
    seen, blocks = SeenPrefixes(), block_hashes(range(BLOCK * 512), "")
    seen.add(blocks)
    assert seen.num_matching(blocks) == 512
    seen.add([value ^ (1 << 40) for value in blocks[:511:2]])
    assert seen.num_matching(blocks[:1]) == 0
    assert seen.num_matching(blocks) == 512
    assert seen.num_matching([]) == 0
