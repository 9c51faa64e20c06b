"""The scheduler: which sequences compute how many tokens in the next forward step.

Handles no tensor and no clock beyond deadlines. Decode rows go first, then answers that are computed again, those that lack least
before the others, which hardly wait longer for it, then new prompts, which fill what is left of the token budget in chunks. A
sequence begins with the pages of others that have begun alike. When the cache is full the youngest sequence gives its pages back and
is computed again later: by contract its tokens come out the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .kv_cache import PAGE_SIZE, PageAllocator
from .prefix_hash import PageHasher
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """``count`` tokens of a sequence from position ``first`` on."""

    sequence: Sequence
    first: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the chunk ends with the newest token, so that its last row yields the next one."""
        return self.first + self.count == len(self.sequence.tokens)


class Scheduler:
    """Waiting and running sequences, and the pages they hold."""

    def __init__(
        self,
        pages: PageAllocator,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        generation: Callable[[], int | None] = lambda: None,
    ) -> None:
        """``generation`` gives a number that grows whenever tokens come out with other bits than before; while it gives None no page is shared."""
        self.num_preemptions = 0
        self.num_looked_up = self.num_reused = 0  # tokens
        self._pages = pages
        self._numerics_generation = generation
        self._hasher = PageHasher()
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def answering(self) -> bool:
        return any(sequence.num_generated for sequence in self._running)

    def sequences(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._waiting

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)
        self._waiting.sort(key=_urgency)

    def remove(self, sequence: Sequence, spoilt: bool = False) -> None:
        """Frees a sequence's pages, which nobody else shall begin with if ``spoilt``; one in flight must have come back first."""
        assert not sequence.in_flight, sequence.request_id
        if spoilt:
            self._pages.unregister(sequence.pages)
        self._release(sequence)
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def schedule(self, prompt_limit: int | None = None) -> list[Chunk]:
        """The next forward step: each chunk has its pages, each sequence is marked in flight.

        ``prompt_limit`` is how many tokens of new prompts it takes while any answer is under way.
        """
        self._admit()
        room = prompt_room = self._max_num_batched_tokens
        if prompt_limit is not None and self.answering:
            prompt_room = prompt_limit
        chunks: list[Chunk] = []
        idle = [sequence for sequence in self._running if not sequence.in_flight]
        for sequence in sorted(idle, key=_turn):
            count = min(sequence.num_to_compute, room, room if sequence.num_generated else prompt_room)
            if not count or len(chunks) == self._max_num_seqs or sequence not in self._running:
                continue
            if not self._extend(sequence, sequence.num_cached + count, {chunk.sequence for chunk in chunks}):
                continue
            if sequence.numerics_generation != self._numerics_generation():
                sequence.numerics_generation = None
            chunks.append(Chunk(sequence, sequence.num_cached, count))
            sequence.in_flight = True
            room -= count
            prompt_room -= 0 if sequence.num_generated else count
        return chunks

    def complete(self, chunk: Chunk) -> None:
        """The chunk's latents are in the cache."""
        sequence = chunk.sequence
        sequence.in_flight = False
        sequence.num_cached = chunk.first + chunk.count
        if (
            sequence.numerics_generation is not None
            and sequence.numerics_generation == self._numerics_generation()
            and sequence.fault is None
        ):
            whole = range(chunk.first // PAGE_SIZE, sequence.num_cached // PAGE_SIZE)
            self._hasher.extend(
                sequence.page_hashes, self._root(sequence, sequence.numerics_generation), sequence.tokens, whole.stop
            )
            for index in whole:
                self._pages.register(sequence.pages[index], sequence.page_hashes[index])

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting[0]
            shared = self._share(sequence)
            needed = self._pages.needed(len(sequence.tokens) + 1) - len(shared)
            if needed > self._pages.num_free:
                self._pages.give_back(shared)
                return
            self._running.append(self._waiting.pop(0))
            sequence.pages = shared + self._pages.take(needed)
            sequence.num_cached = len(shared) * PAGE_SIZE
            self._count(sequence)

    def _share(self, sequence: Sequence) -> list[int]:
        """Pages of others that hold how the sequence begins; at least its last token is left to compute."""
        generation = self._numerics_generation()
        if sequence.numerics_generation != generation:
            sequence.numerics_generation, sequence.page_hashes = generation, []
        if generation is None:
            return []
        num_pages = (len(sequence.tokens) - 1) // PAGE_SIZE
        self._hasher.extend(sequence.page_hashes, self._root(sequence, generation), sequence.tokens, num_pages)
        return self._pages.match(sequence.page_hashes[:num_pages])

    def _root(self, sequence: Sequence, generation: int) -> bytes:
        return self._hasher.root(sequence.salt, generation)

    def _count(self, sequence: Sequence) -> None:
        if sequence.num_reused is None:
            sequence.num_reused = min(sequence.num_cached, sequence.num_prompt)
            self.num_looked_up += len(sequence.tokens)
            self.num_reused += sequence.num_cached

    def _extend(self, sequence: Sequence, num_positions: int, chosen: set[Sequence]) -> bool:
        """Whether ``sequence`` now has pages for ``num_positions``, the youngest others giving way if they must."""
        missing = self._pages.needed(num_positions) - len(sequence.pages)
        while missing > self._pages.num_free:
            victims = [other for other in self._running if not other.in_flight and other not in chosen]
            victim = max(victims, key=_urgency, default=sequence)
            self._preempt(victim)
            if victim is sequence:
                return False
        if missing > 0:
            sequence.pages += self._pages.take(missing)
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._release(victim)
        self._running.remove(victim)
        self.num_preemptions += 1
        self.add(victim)

    def _release(self, sequence: Sequence) -> None:
        self._pages.give_back(sequence.pages)
        sequence.pages = []
        sequence.num_cached = 0


def _turn(sequence: Sequence) -> tuple[bool, bool, int, int, int]:
    lacks, is_answer = sequence.num_to_compute, sequence.num_generated > 0
    return (lacks > 1, not is_answer, sequence.priority, lacks if is_answer else 0, sequence.arrival)


def _urgency(sequence: Sequence) -> tuple[int, int]:
    return (sequence.priority, sequence.arrival)
