"""The scheduler batches everybody, never overfills the cache, and forgets nobody."""

import random

from expertfleet.attention_workers.kv_cache import PAGE, PageAllocator, slots_of
from expertfleet.attention_workers.scheduler import Chunk, Scheduler
from expertfleet.attention_workers.sequence import SamplingParams, Sequence


def make_sequence(num_prompt: int, max_tokens: int = 4, priority: int = 0) -> Sequence:
    return Sequence(
        "r", list(range(num_prompt)), num_prompt, max_tokens, SamplingParams(), lambda update: None, priority=priority
    )


def make_scheduler(num_pages: int = 64, max_seqs: int = 64, max_tokens: int = 512) -> Scheduler:
    return Scheduler(PageAllocator(num_pages), max_seqs, max_tokens)


def land(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        samples = chunk.samples
        scheduler.landed(chunk)
        if samples and chunk.sequence.append(7):
            scheduler.remove(chunk.sequence)


def test_nine_decoding_sequences_share_a_step() -> None:
    scheduler = make_scheduler()
    for _ in range(9):
        scheduler.add(make_sequence(5))
    land(scheduler, scheduler.schedule())
    chunks = scheduler.schedule()
    assert [chunk.count for chunk in chunks] == [1] * 9


def test_decode_goes_before_a_long_prompt_that_is_cut() -> None:
    scheduler = make_scheduler(max_tokens=100)
    first = make_sequence(5)
    scheduler.add(first)
    land(scheduler, scheduler.schedule())
    scheduler.add(make_sequence(1000))
    chunks = scheduler.schedule()
    assert chunks[0].sequence is first
    assert [chunk.count for chunk in chunks] == [1, 99]
    assert [chunk.samples for chunk in chunks] == [True, False]


def test_priority_then_arrival_decides_who_is_admitted() -> None:
    scheduler = make_scheduler(max_seqs=2)
    sequences = [make_sequence(3, priority=priority) for priority in (2, 0, 1, 0)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [sequences[1], sequences[3]]


def test_a_flying_sequence_is_not_scheduled_twice() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(3))
    assert scheduler.schedule()
    assert scheduler.schedule() == []


def test_the_youngest_gives_way_when_the_cache_is_full_and_all_finish() -> None:
    scheduler = make_scheduler(num_pages=3)
    old, young = make_sequence(PAGE - 2, max_tokens=PAGE), make_sequence(PAGE - 2, max_tokens=PAGE)
    scheduler.add(old)
    scheduler.add(young)
    for _ in range(4 * PAGE):
        land(scheduler, scheduler.schedule())
    assert scheduler.num_preemptions >= 1
    assert old.num_generated == young.num_generated == PAGE
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_random_load_ends_with_every_page_free() -> None:
    rng = random.Random()
    pages = PageAllocator(12)
    scheduler = Scheduler(pages, 5, 200)
    sequences = [make_sequence(rng.randint(1, 3 * PAGE), rng.randint(1, 40), rng.randrange(3)) for _ in range(30)]
    for sequence in sequences:
        scheduler.add(sequence)
    for _ in range(5000):
        chunks = scheduler.schedule()
        assert sum(chunk.count for chunk in chunks) <= 200
        assert len(chunks) <= 5
        for chunk in chunks:
            slots = slots_of(chunk.sequence.pages, chunk.first, chunk.count)
            assert len(set(slots)) == chunk.count
        owned = [page for sequence in sequences for page in sequence.pages]
        assert len(owned) == len(set(owned))
        assert len(owned) + pages.num_free == 12
        land(scheduler, chunks)
    assert all(sequence.num_generated == sequence.max_tokens for sequence in sequences)
    assert pages.num_free == 12
