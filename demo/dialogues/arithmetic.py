"""Comparing decimals, adding and subtracting, with the thinking worked digit by digit.

Knows nothing of chats. Every step needs two digits and what the step before it left.
"""

from itertools import zip_longest

from .parts import Step, Turn
from .space import Space, tidy

# A phrasing is one of each row's parts.
_WHICH = (
    "Which",
    "Which one",
    "Which number",
    "which",
    "which one",
    "What",
    "Tell me which",
    "Say which one",
    "Please say which",
)
_ENDS = (
    "?",
    "?",
    "? think carefully.",
    "? Think carefully.",
    "? Be careful.",
    "? Take your time.",
    "? Answer briefly.",
)
_TWO = ("{a} or {b}",)
_COMPARE = ("Compare", "Please compare", "compare", "Now compare", "Can you compare", "Look at", "Take")
_ASK = (
    "What is",
    "What's",
    "what is",
    "How much is",
    "Tell me",
    "Please tell me",
    "Do you know",
    "I need",
    "Give me",
    "And",
    "Now",
)
_ASK_ENDS = ("?", "?", ".", ", please.", " please?", "? Think carefully.")
_DO = ("", "Please", "Can you", "Could you", "Now", "I want you to", "Then", "Quick:", "Let us", "Would you")
_DO_ENDS = ("", ".", "?", " for me.", ", please.", " and tell me the result.")
_VERBS = ("calculate", "compute", "work out", "find", "Calculate", "Compute")
_SUMS = ("{a} + {b}", "{a} plus {b}", "the sum of {a} and {b}", "{a}+{b}")
_DIFFERENCES = ("{a} - {b}", "{a} minus {b}", "the difference of {a} and {b}", "{a}-{b}")
_ADD = ("add {a} and {b}", "add {a} to {b}", "Add {a} and {b}", "Add up {a} and {b}", "sum up {a} and {b}")
_SUBTRACT = ("subtract {b} from {a}", "Subtract {b} from {a}", "take {b} away from {a}", "take away {b} from {a}")
_BARE = ("", "=", "= ?", "?", "=?", "is", "is what?", "makes")
_PLACES = ("ones", "tens", "hundreds", "thousands")
_LENGTHS = (1, 2, 2, 2, 3, 3, 3, 4)
_NOTHING = "-"


def comparison(space: Space) -> Turn:
    a, b = space.draw(lambda: _decimals(space)).split()
    smaller = space.chance(0.35)
    user = space.dressed(_which(space, smaller).format(a=a, b=b))
    low, high = (a, b) if float(a) < float(b) else (b, a)
    if float(a) == float(b):
        reasoning = f"{_walked(a, b)} All digits are equal."
        return Turn("comparison", user, (Step(reasoning, f"{a} and {b} are equal."),), ("equal",))
    answer = f"{low} is smaller than {high}." if smaller else f"{high} is bigger than {low}."
    return Turn("comparison", user, (Step(f"{_walked(a, b)} So {high} is bigger.", answer),), (answer,))


def _which(space: Space, smaller: bool) -> str:
    sizes = ("smaller", "less", "lower") if smaller else ("bigger", "larger", "greater")
    style = space.rng.randrange(4)
    if style == 0:
        phrase = space.phrase(_WHICH, ("is",), sizes, (",", ":", "-"), _TWO, _ENDS)
    elif style == 1:
        phrase = space.phrase(_COMPARE, ("{a} and {b}",), (".", ":", ","), _WHICH, ("is",), sizes, _ENDS)
    elif style == 2:
        phrase = space.phrase(_TWO, (":", ",", "-"), _WHICH, ("is",), sizes, _ENDS)
    else:
        phrase = space.phrase(("Is", "is", "Hm, is", "And is", "Now, is", "Tell me: is"), _TWO, sizes, _ENDS)
    return tidy(phrase)


def _how_much(space: Space, terms: tuple[str, ...], commands: tuple[str, ...]) -> str:
    style = space.rng.randrange(4)
    if style == 0:
        phrase = space.phrase(_ASK, terms, _ASK_ENDS)
    elif style == 1:
        phrase = space.phrase(_DO, _VERBS, terms, _DO_ENDS)
    elif style == 2:
        phrase = space.phrase(_DO, commands, _DO_ENDS)
    else:
        phrase = space.phrase(("", "", "Quick:", "Now", "And", "Next:"), terms, _BARE)
    return tidy(phrase)


def _walked(a: str, b: str) -> str:
    """Digit against digit, the wholes first, up to the first difference."""
    (a_whole, _, a_rest), (b_whole, _, b_rest) = a.partition("."), b.partition(".")
    said = f"{a} and {b}. Wholes {a_whole} and {b_whole}:"
    if len(a_whole) != len(b_whole):
        return f"{said} {max(a_whole, b_whole, key=len)} is longer."
    said = f"{said} {_compared(a_whole, b_whole)}."
    if a_whole == b_whole:
        said += f" Decimals {a_rest or _NOTHING} and {b_rest or _NOTHING}: {_compared(a_rest, b_rest)}."
    return said


def _compared(a: str, b: str) -> str:
    """A digit that is not there counts as 0."""
    walk = []
    for left, right in zip_longest(a, b, fillvalue=_NOTHING):
        x, y = (0 if digit == _NOTHING else int(digit) for digit in (left, right))
        walk.append(f"{left}{'=' if x == y else '<' if x < y else '>'}{right}")
        if x != y:
            break
    return ", ".join(walk) or f"{_NOTHING}={_NOTHING}"


def addition(space: Space, digits: int | None = None) -> Turn:
    a, b = map(int, space.draw(lambda: _integers(space, digits)).split())
    user = space.dressed(_how_much(space, _SUMS, _ADD).format(a=a, b=b))
    steps, carry = [], 0
    for place, (x, y) in zip(_PLACES, _columns(a, b), strict=False):
        total = x + y + carry
        steps.append(f"{place} {x}+{y}+{carry}={total} carry {total // 10}.")
        carry = total // 10
    reasoning = f"{a}+{b}: {' '.join(steps)} The sum is {a + b}."
    return Turn("addition", user, (Step(reasoning, f"{a} + {b} = {a + b}."),), (f"= {a + b}.",))


def subtraction(space: Space, digits: int | None = None) -> Turn:
    low, high = sorted(map(int, space.draw(lambda: _integers(space, digits)).split()))
    user = space.dressed(_how_much(space, _DIFFERENCES, _SUBTRACT).format(a=high, b=low))
    steps, borrow = [], 0
    for place, (x, y) in zip(_PLACES, _columns(high, low), strict=False):
        rest = x - y - borrow
        lent = "+10" if rest < 0 else ""
        steps.append(f"{place} {x}-{y}-{borrow}{lent}={rest % 10} borrow {int(rest < 0)}.")
        borrow = int(rest < 0)
    reasoning = f"{high}-{low}: {' '.join(steps)} The difference is {high - low}."
    return Turn("subtraction", user, (Step(reasoning, f"{high} - {low} = {high - low}."),), (f"= {high - low}.",))


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """Pairs of digits, the ones first; a digit that is not there is 0."""
    pairs = zip_longest(str(a)[::-1], str(b)[::-1], fillvalue="0")
    return [(int(x), int(y)) for x, y in pairs]


def _integers(space: Space, digits: int | None) -> str:
    """Mostly of the same length."""
    first = digits or space.rng.choice(_LENGTHS)
    second = digits or (first if space.chance(0.75) else space.rng.choice(_LENGTHS))
    return f"{_integer(space, first)} {_integer(space, second)}"


def _integer(space: Space, digits: int) -> int:
    return space.rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _decimals(space: Space) -> str:
    """Two decimals, often with the same whole or wholes of one length, and sometimes of equal value."""
    rng = space.rng
    whole = rng.randrange(rng.choice((10, 10, 100, 1000)))
    a = _decimal(space, whole)
    if space.chance(0.04):
        return f"{a} {a}0" if "." in a else f"{a} {a}.0"
    if space.chance(0.6):
        return f"{a} {_decimal(space, whole)}"
    other = _integer(space, len(str(whole))) if space.chance(0.4) else rng.randrange(rng.choice((10, 100, 1000)))
    return f"{a} {_decimal(space, other)}"


def _decimal(space: Space, whole: int) -> str:
    digits = space.rng.choice((1, 1, 1, 2, 2, 2, 2, 3, 3, 0))
    return f"{whole}.{space.rng.randrange(10**digits):0{digits}}" if digits else str(whole)
