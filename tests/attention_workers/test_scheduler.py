"""The scheduler batches everybody, never overfills the cache, and forgets nobody."""

import random
from collections.abc import Callable

import pytest

from expertfleet.attention_workers.kv_cache import PAGE_SIZE, PageAllocator, slots_of
from expertfleet.attention_workers.scheduler import Chunk, Scheduler
from expertfleet.attention_workers.sequence import SamplingParams, Sequence
from expertfleet.proto.errors import Code, FleetError


def make_sequence(num_prompt: int, max_tokens: int = 4, priority: int = 0) -> Sequence:
    return Sequence(
        "r", list(range(num_prompt)), num_prompt, max_tokens, SamplingParams(), lambda update: None, priority=priority
    )


def make_scheduler(num_pages: int = 64, max_seqs: int = 64, max_tokens: int = 512) -> Scheduler:
    return Scheduler(PageAllocator(num_pages), max_seqs, max_tokens)


def sharing(num_pages: int = 64, generation: Callable[[], int] = lambda: 0) -> Scheduler:
    return Scheduler(PageAllocator(num_pages), 64, 512, generation)


def run(scheduler: Scheduler, *sequences: Sequence) -> None:
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.num_running + scheduler.num_waiting:
        land(scheduler, scheduler.schedule())


def land(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        samples = chunk.samples
        scheduler.complete(chunk)
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


def test_new_prompts_are_limited_while_an_answer_is_under_way_and_answers_computed_again_are_not() -> None:
    scheduler = make_scheduler()
    for num_prompt in (300, 600):
        scheduler.add(make_sequence(num_prompt))
    chunks = scheduler.schedule(prompt_limit=40)
    assert [chunk.count for chunk in chunks] == [300, 212]
    land(scheduler, chunks)
    assert [chunk.count for chunk in scheduler.schedule(prompt_limit=40)] == [1, 40]
    moved = make_sequence(200, max_tokens=9)
    moved.tokens += [1, 2, 3]
    scheduler = make_scheduler()
    for sequence in (make_sequence(300), moved, make_sequence(300)):
        scheduler.add(sequence)
    chunks = scheduler.schedule(prompt_limit=40)
    assert [(chunk.sequence is moved, chunk.count) for chunk in chunks] == [(True, 203), (False, 40)]


def test_of_answers_computed_again_those_that_lack_least_go_first() -> None:
    scheduler = make_scheduler(max_tokens=100)
    answers = [make_sequence(size) for size in (300, 30, 60, 10)]
    for answer in answers:
        answer.tokens.append(7)  # came to the client from a worker that is gone
        scheduler.add(answer)
    answers[3].priority = 1
    chunks = scheduler.schedule()
    assert [(chunk.sequence, chunk.count) for chunk in chunks] == [(answers[1], 31), (answers[2], 61), (answers[0], 8)]


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
    old, young = make_sequence(PAGE_SIZE - 2, max_tokens=PAGE_SIZE), make_sequence(PAGE_SIZE - 2, max_tokens=PAGE_SIZE)
    scheduler.add(old)
    scheduler.add(young)
    for _ in range(4 * PAGE_SIZE):
        land(scheduler, scheduler.schedule())
    assert scheduler.num_preemptions >= 1
    assert old.num_generated == young.num_generated == PAGE_SIZE
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_random_load_ends_with_every_page_free() -> None:
    rng = random.Random()
    pages = PageAllocator(12)
    scheduler = Scheduler(pages, 5, 200)
    sequences = [make_sequence(rng.randint(1, 3 * PAGE_SIZE), rng.randint(1, 40), rng.randrange(3)) for _ in range(30)]
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


def test_a_sequence_begins_where_others_have_computed() -> None:
    scheduler = sharing()
    first, second = make_sequence(2 * PAGE_SIZE + 9), make_sequence(2 * PAGE_SIZE + 9)
    run(scheduler, first)
    scheduler.add(second)
    (chunk,) = scheduler.schedule()
    assert (chunk.first, chunk.count) == (2 * PAGE_SIZE, 9)
    assert (first.num_reused, second.num_reused) == (0, 2 * PAGE_SIZE)
    assert (scheduler.num_looked_up, scheduler.num_reused) == (4 * PAGE_SIZE + 18, 2 * PAGE_SIZE)


def test_the_last_token_is_computed_even_if_its_page_is_known() -> None:
    scheduler = sharing()
    run(scheduler, make_sequence(2 * PAGE_SIZE))
    scheduler.add(again := make_sequence(2 * PAGE_SIZE))
    (chunk,) = scheduler.schedule()
    assert (chunk.first, chunk.count, chunk.samples) == (PAGE_SIZE, PAGE_SIZE, True)
    assert again.num_reused == PAGE_SIZE


def test_pages_of_an_answer_are_shared_with_the_next_question() -> None:
    scheduler = sharing()
    first = make_sequence(PAGE_SIZE - 3, max_tokens=10)
    run(scheduler, first)
    second = Sequence("r", [*first.tokens, 1, 2], len(first.tokens) + 2, 4, SamplingParams(), lambda update: None)
    scheduler.add(second)
    assert scheduler.schedule()[0].first == PAGE_SIZE


@pytest.mark.parametrize("salt", ["", "mine"])
def test_a_salt_keeps_its_prefixes_to_itself(salt: str) -> None:
    scheduler = sharing()
    run(scheduler, make_sequence(PAGE_SIZE + 1))
    again = make_sequence(PAGE_SIZE + 1)
    again.salt = salt
    run(scheduler, again)
    assert again.num_reused == (0 if salt else PAGE_SIZE)


def test_what_has_other_bits_is_not_shared_nor_what_was_under_way_when_they_changed() -> None:
    generation = [0]
    scheduler = sharing(generation=lambda: generation[0])
    run(scheduler, make_sequence(PAGE_SIZE + 1))
    scheduler.add(between := make_sequence(PAGE_SIZE + 1))
    (chunk,) = scheduler.schedule()
    assert chunk.first == PAGE_SIZE  # from before
    scheduler.complete(chunk)
    between.append(7)
    scheduler.remove(between)
    scheduler.add(flying := make_sequence(2 * PAGE_SIZE + 1))
    chunks = scheduler.schedule()
    generation[0] = 1
    land(scheduler, chunks)
    while scheduler.num_running:
        land(scheduler, scheduler.schedule())
    assert flying.num_generated == flying.max_tokens
    run(scheduler, after := make_sequence(2 * PAGE_SIZE + 1))
    assert after.num_reused == 0
    run(scheduler, again := make_sequence(2 * PAGE_SIZE + 1))
    assert again.num_reused == 2 * PAGE_SIZE


def test_a_step_with_a_missing_row_leaves_nothing_behind() -> None:
    scheduler = sharing()
    scheduler.add(faulty := make_sequence(PAGE_SIZE + 1))
    (chunk,) = scheduler.schedule()
    faulty.fault = FleetError(Code.NON_FINITE, "a row")
    scheduler.complete(chunk)
    scheduler.remove(faulty)
    run(scheduler, again := make_sequence(PAGE_SIZE + 1))
    assert again.num_reused == 0


def test_pages_of_a_sequence_that_came_out_spoilt_are_computed_again() -> None:
    scheduler = sharing()
    run(scheduler, make_sequence(PAGE_SIZE + 1))
    scheduler.add(spoilt := make_sequence(2 * PAGE_SIZE + 1))
    land(scheduler, scheduler.schedule())
    scheduler.remove(spoilt, spoilt=True)
    run(scheduler, again := make_sequence(2 * PAGE_SIZE + 1))
    assert (spoilt.num_reused, again.num_reused) == (PAGE_SIZE, 0)


def test_every_position_holds_its_own_sequences_tokens_whoever_shares_the_page() -> None:
    rng = random.Random(seed := random.randrange(1 << 30))
    pages = PageAllocator(14)
    generation = [0]
    scheduler = Scheduler(pages, 6, 300, lambda: generation[0])
    memory: dict[int, tuple[int, int]] = {}  # by slot: what was computed there, and with which bits
    starts = [[rng.randrange(9) for _ in range(3 * PAGE_SIZE)] for _ in range(2)]
    waiting = []
    for _ in range(80):
        tokens = rng.choice(starts)[: rng.randint(1, 3 * PAGE_SIZE)] + [
            rng.randrange(9) for _ in range(rng.randint(0, 60))
        ]
        waiting.append(Sequence("r", tokens, len(tokens), rng.randint(1, 40), SamplingParams(), lambda update: None))
    sequences = list(waiting)
    while waiting or scheduler.num_running + scheduler.num_waiting:
        if waiting and rng.random() < 0.2:
            scheduler.add(waiting.pop())
        generation[0] += rng.random() < 0.005
        chunks = scheduler.schedule()
        for chunk in chunks:
            sequence = chunk.sequence
            for position, slot in enumerate(slots_of(sequence.pages, 0, chunk.first)):
                assert memory[slot][0] == sequence.tokens[position], seed
                assert sequence.numerics_generation is None or memory[slot][1] == generation[0], seed
            written = slots_of(sequence.pages, chunk.first, chunk.count)
            others = {page for other in sequences if other is not sequence for page in other.pages}
            assert not others & {slot // PAGE_SIZE for slot in written}, seed
            for position, slot in enumerate(written):
                memory[slot] = (sequence.tokens[chunk.first + position], generation[0])
        land(scheduler, chunks)
    assert all(sequence.num_generated == sequence.max_tokens for sequence in sequences)
    assert scheduler.num_reused > 0
    assert pages.num_free == 14
