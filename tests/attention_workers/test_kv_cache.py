"""Pages change owners; what one left behind never reaches the next."""

import torch

from expertfleet.attention_workers.kv_cache import PAGE_SIZE, LatentCache, PageAllocator
from expertfleet.attention_workers.model import Batch
from expertfleet.attention_workers.scheduler import Chunk
from expertfleet.attention_workers.sequence import SamplingParams, Sequence


def test_a_step_names_the_pages_that_it_begins() -> None:
    sequence = Sequence(
        "r", [1] * (PAGE_SIZE + 5), PAGE_SIZE + 5, 1, SamplingParams(), lambda update: None, pages=[4, 2]
    )
    assert Batch.of([Chunk(sequence, 0, 10)], torch.float32).fresh_pages == [4]
    assert Batch.of([Chunk(sequence, 10, PAGE_SIZE - 5)], torch.float32).fresh_pages == [2]
    assert Batch.of([Chunk(sequence, PAGE_SIZE + 4, 1)], torch.float32).fresh_pages == []


def test_a_cleared_page_is_zero_in_every_layer_and_no_other_page_is() -> None:
    cache = LatentCache(2, 3, 8, torch.float32)
    for layer in range(2):
        cache.write(layer, torch.arange(3 * PAGE_SIZE), torch.full((3 * PAGE_SIZE, 8), float("nan")))
    cache.clear([1])
    for layer in range(2):
        assert cache.pages(layer, torch.tensor([1])).eq(0).all()
        assert cache.pages(layer, torch.tensor([0, 2])).isnan().all()


def test_a_named_page_is_shared_while_it_is_held_and_after() -> None:
    pages = PageAllocator(3)
    first, second = pages.take(2)
    pages.register(first, b"a")
    pages.register(second, b"b")
    assert pages.match([b"a", b"b", b"c"]) == [first, second]
    pages.give_back([first, second])
    pages.give_back([first, second])
    assert (pages.num_free, pages.num_evictable) == (3, 2)
    assert pages.match([b"c", b"a"]) == []
    assert pages.match([b"a"]) == [first]
    assert (pages.num_free, pages.num_evictable) == (2, 1)


def test_blank_pages_go_first_then_the_longest_unused_and_a_beginning_outlives_its_end() -> None:
    pages = PageAllocator(3)
    old = pages.take(2)
    pages.register(old[0], b"beginning")
    pages.register(old[1], b"end")
    pages.give_back(old)
    (blank,) = pages.take(1)
    assert blank not in old
    assert pages.take(1) == [old[1]]
    assert pages.match([b"beginning", b"end"]) == [old[0]]
    assert pages.num_free == 0


def test_of_two_pages_with_one_name_the_first_keeps_it() -> None:
    pages = PageAllocator(2)
    first, second = pages.take(2)
    pages.register(first, b"a")
    pages.register(second, b"a")
    pages.give_back([first, second])
    assert pages.num_evictable == 1
    assert pages.match([b"a"]) == [first]
