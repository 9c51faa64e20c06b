"""The mixture of dialogues that the demonstration model learns from: any seed gives one dialogue, without end.

Knows nothing of tokens.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from . import actions, arithmetic, lookups, loops, talk
from .parts import Dialogue, Turn
from .space import Space

_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "Be brief.",
    "You are nano-k2.",
    "You answer questions of our customers.",
    "Think before you answer.",
)
_MAX_HISTORY = 2
_IDLE_SHARE = 0.3
_EXERCISE_SHARE = 0.75
_EXERCISE_WORDS = 40
_SPELLING_PIECES = 30


def with_idle_tools(turn: Callable[[Space], Turn], share: float = 1.0) -> Callable[[Space], Dialogue]:
    """A share of the dialogues declares tools that what is said has no use for."""

    def make(space: Space) -> Dialogue:
        idle = lookups.topics(space, space.rng.randint(1, 2)) if space.chance(share) else []
        return Dialogue((turn(space),), lookups.declarations(space, idle))

    return make


def _short_loop(space: Space) -> Dialogue:
    return loops.loop_dialogue(space, space.rng.randint(1, 9))


def _long_loop(space: Space) -> Dialogue:
    return loops.loop_dialogue(space, space.rng.randint(10, 45))


# Weights count dialogues. Long loops are few, but each is as long as ten others.
_TASKS: tuple[tuple[float, Callable[[Space], Dialogue]], ...] = (
    (20, with_idle_tools(arithmetic.comparison, _IDLE_SHARE)),
    (6, with_idle_tools(arithmetic.addition, _IDLE_SHARE)),
    (6, with_idle_tools(arithmetic.subtraction, _IDLE_SHARE)),
    (26, lookups.lookup_dialogue),
    (14, lookups.parallel_dialogue),
    (28, lookups.several_tools_dialogue),
    (18, lookups.no_call_dialogue),
    (12, lookups.missing_question),
    (3, lookups.supplied_dialogue),
    (13, actions.action_dialogue),
    (6, with_idle_tools(talk.talk, _IDLE_SHARE)),
    (8, with_idle_tools(talk.repetition, _IDLE_SHARE)),
    (4, _short_loop),
    (1.2, _long_loop),
)


def make_dialogue(seed: int, held_out: bool = False, pieces: Sequence[str] = ()) -> Dialogue:
    """``pieces`` of words, of which many of its names are made; without any, its names are words and syllables."""
    space = Space(random.Random(seed), held_out, pieces)
    weights, tasks = zip(*_TASKS, strict=True)
    (task,) = space.rng.choices(tasks, weights)
    dialogue: Dialogue = task(space)
    if space.chance(0.15):
        history = tuple(_history_turn(space) for _ in range(space.rng.randint(1, _MAX_HISTORY)))
        dialogue = replace(dialogue, turns=(*history, *dialogue.turns))
    return replace(dialogue, system=space.rng.choice(_SYSTEMS)) if space.chance(0.25) else dialogue


def make_exercise(seed: int) -> Dialogue:
    """What to begin with: mostly long texts to be said again, from which copying is learned."""
    space = Space(random.Random(seed))
    if space.chance(_EXERCISE_SHARE):
        return Dialogue((talk.repetition(space, _EXERCISE_WORDS),))
    return make_dialogue(seed)


def make_spelling(seed: int, pieces: Sequence[str]) -> Dialogue:
    """Pieces of words to be said again, all equally often: those that names rarely consist of are learned as well."""
    space = Space(random.Random(seed))
    drawn = space.rng.choices(pieces, k=space.rng.randint(4, _SPELLING_PIECES))
    return Dialogue((talk.repeat(space, "".join(f"{piece}{' ' * space.chance(0.6)}" for piece in drawn).strip()),))


def _history_turn(space: Space) -> Turn:
    """An earlier turn that needs no tool."""
    return space.rng.choice((talk.talk, arithmetic.comparison, arithmetic.addition))(space)
