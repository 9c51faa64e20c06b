"""Questions that a declared tool can answer, and the ones beside them: no fitting tool, or an argument missing.

Knows nothing of chats. A Topic is one thing that can be asked of one kind of subject; its tool is declared among others.
The thinking names what is asked, reads out the declared tools and says of each whether it fits, and with which arguments; the
calls are made in that order, so that each step needs only what stands in one place.
"""

import json
from dataclasses import dataclass
from typing import Any

from . import space as known
from .parts import Call, Dialogue, Message, Step, Turn, tool
from .space import Space, tidy, words

_VERBS = ("get", "fetch", "read", "find", "check", "lookup", "query", "show", "load", "retrieve")
_SAID_OF_NOUNS = {
    *_VERBS,
    "current",
    *words("set change adjust order buy purchase send post user book reserve schedule"),
}
_SAID_OF_NOUNS |= set(words("measure compute start create transfer move ship"))
# Kind of subject: its nouns, the names a parameter may have, and the word that joins noun and subject.
_KINDS: dict[str, tuple[list[str], tuple[str, ...], str]] = {
    "city": (known.PLACE_NOUNS, ("city", "location", "place", "town"), "in"),
    "person": (known.PERSON_NOUNS, ("name", "person", "user", "employee"), "of"),
    "product": (known.PRODUCT_NOUNS, ("product", "item", "article", "goods"), "of"),
    **{
        record: (known.RECORD_NOUNS, (f"{record}_id", "id", "number", f"{record}_number"), f"of {record}")
        for record in known.RECORDS
    },
}
_DESCRIPTIONS = (
    "Get the {noun} of a {kind}.",
    "Get current {noun} for a given {kind}.",
    "Returns the {noun} for the given {kind}.",
    "The {noun} of one {kind}.",
    "Look up the {noun} of a {kind}.",
    "Find out the current {noun} of a {kind}",
    "Retrieve {noun} by {param}.",
    "Reads a value.",
    "",
    "Gives the {noun} for a {kind}, if known.",
)
_PARAM_DESCRIPTIONS = (
    "",
    "The {kind}.",
    "Name of the {kind}, e.g. {example}",
    "{param} of the {kind}",
    "City and country e.g. Bogotá, Colombia",
    "The {kind}, for example {example}",
    "Which {kind}",
)
# A phrasing is one of each row's parts.
_ASK = words(
    "What_is What's what_is what's What_was Do_you_know Can_you_check Could_you_check Can_you_find Could_you_tell_me "
    "Can_you_tell_me Would_you_look_up"
)
_DEMAND = words(
    "Tell_me Please_tell_me I_need Give_me Please_give_me Find Please_find Find_out Check Please_check Look_up Show_me "
    "I_want_to_know I_would_like_to_know tell_me Get_me"
)
_ARTICLE = ("the", "the", "the current", "the exact")
_WHEN = ("", "", "today", "now", "right now", "at the moment", "for me", "please", ", please")
_WHAT = ("What is", "What's", "what is", "what's", "Now what is", "And what is")
_OF_IT = (
    "how is the {noun}?",
    "what is the {noun}?",
    "the {noun}, please.",
    "tell me the {noun}.",
    "I need the {noun}.",
)
_COURTESY = ("", "", "Thanks!", "Be brief.", "Thank you.")
_AMONG = ("{noun} {join} {subject}",)
_BARE = ("{noun}",)
_FOLLOW = (
    "And",
    "What about",
    "And what about",
    "How about",
    "Now",
    "Also",
    "Then",
    "The same for",
    "And now",
    "Next:",
    "",
)
_FOLLOWED = ("{subject}", "{subject}", "{join} {subject}", "the one {join} {subject}")
_FOLLOW_ENDS = ("?", ".", ", please.", "please", "too, please.", "now?")
# Descriptions that tell of the tool in other words: its name decides.
_OTHER_WORDS = 0.25
_AND = (" and ", " and ", " and also ", " as well as ", ", and ")


@dataclass(frozen=True)
class Topic:
    """``noun`` of a subject of ``kind``, told by the tool ``name`` whose argument is ``param``."""

    noun: str
    kind: str
    name: str
    param: str
    join: str

    def subject(self, space: Space) -> str:
        if self.kind == "city":
            return space.city()
        if self.kind == "person":
            return space.person()
        return space.product() if self.kind == "product" else space.record_id()

    def declaration(self, space: Space) -> Message:
        told = space.noun(_KINDS[self.kind][0]) if space.chance(_OTHER_WORDS) else self.noun
        words = {"noun": told, "kind": self.kind, "param": self.param, "example": self.subject(space)}
        schema: Message = {"type": "string"}
        if described := space.rng.choice(_PARAM_DESCRIPTIONS).format(**words):
            schema["description"] = described
        properties = {self.param: schema}
        if space.chance(0.15):
            properties["unit"] = {"type": "string", "enum": space.rng.sample(known.UNITS, 2)}
        more: dict[str, Any] = {"additionalProperties": False} if space.chance(0.3) else {}
        declared = tool(self.name, space.rng.choice(_DESCRIPTIONS).format(**words), properties, [self.param], **more)
        if space.chance(0.2):
            declared["function"]["strict"] = True
        return declared

    def call(self, subject: str, result: str) -> Call:
        return Call(self.name, {self.param: subject}, result)


def topic(space: Space, kind: str | None = None) -> Topic:
    kind = kind or space.rng.choice(("city", "city", "city", "person", "product", space.rng.choice(known.RECORDS)))
    nouns, params, join = _KINDS[kind]
    noun = space.noun(nouns)
    verb = space.rng.choice(_VERBS)
    name = space.rng.choice((f"{verb}_{noun}", f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{verb}", noun))
    if space.chance(0.08):
        name = f"{verb}_current_{noun}"
    return Topic(noun, kind, name, space.rng.choice(params), join)


def topics(space: Space, count: int) -> list[Topic]:
    """Different nouns and names."""
    chosen: dict[str, Topic] = {}
    while len(chosen) < count:
        drawn = topic(space)
        chosen.setdefault(drawn.noun, drawn)
    return list(chosen.values())


def declarations(space: Space, among: list[Topic]) -> tuple[Message, ...]:
    shuffled = space.rng.sample(among, len(among))
    return tuple(one.declaration(space) for one in shuffled)


def lookup(space: Space, asked: list[Topic], subjects: list[str], tools: tuple[Message, ...], user: str = "") -> Turn:
    """One question for every pair of topic and subject, all asked at once."""
    pairs = list(zip(asked, subjects, strict=True))
    user = user or space.dressed(_question(space, pairs))
    several = len({one.name for one in asked}) > 1
    wanted = _told(pairs, "; " if several else " and ")
    order = [one["function"]["name"] for one in tools]
    pairs.sort(key=lambda pair: order.index(pair[0].name))
    results = [_result(space, one, subject) for one, subject in pairs]
    calls = tuple(one.call(subject, result) for (one, subject), (result, _) in zip(pairs, results, strict=True))
    given = {}
    for one in asked:
        mine = [(other, subject) for other, subject in pairs if other == one]
        given[one.name] = f"{_told(mine, ' and ')} yes with {' and '.join(f'{one.param} {each}' for _, each in mine)}"
    plan = " and ".join(f"{one.name} with {one.param} {subject}" for one, subject in pairs)
    reasoning = f"Asked: {wanted}. {read_out(tools, given)} Call {plan}."
    answer = " ".join(
        f"The {one.noun} {one.join} {subject} is {told}."
        for (one, subject), (_, told) in zip(pairs, results, strict=True)
    )
    facts = tuple(told for _, told in results)
    kind = "lookup" if len(pairs) == 1 else "parallel"
    return Turn(kind, user, (Step(reasoning, "", calls), Step("I have the result.", answer)), facts)


def follow_up(space: Space, before: Topic, tools: tuple[Message, ...]) -> Turn:
    """The same question about another subject."""
    subject = before.subject(space)
    user = tidy(space.phrase(_FOLLOW, _FOLLOWED, _FOLLOW_ENDS)).format(join=before.join, subject=subject)
    return lookup(space, [before], [subject], tools, user)


def unfit(space: Space, asked: Topic, tools: tuple[Message, ...]) -> Turn:
    """A question that none of the declared tools answers."""
    subject = asked.subject(space)
    user = space.dressed(_phrase(space).format(noun=asked.noun, join=asked.join, subject=subject))
    reasoning = f"Asked: {asked.noun} {subject}. {read_out(tools, {})} No tool fits."
    return Turn("no call", user, (Step(reasoning, f"I have no tool for the {asked.noun}."),), (asked.noun,))


def missing(space: Space, asked: Topic, tools: tuple[Message, ...]) -> Turn:
    """The tool is there, but nobody said for which subject."""
    user = space.dressed(_phrase(space, _BARE).format(noun=asked.noun))
    given = f"{asked.noun} nothing named yes with {asked.param} nothing named"
    reasoning = (
        f"Asked: {asked.noun} nothing named. {read_out(tools, {asked.name: given})} "
        f"{asked.name} fits, but {asked.param} is missing."
    )
    wanted = asked.param.replace("_", " ")
    return Turn("missing argument", user, (Step(reasoning, f"Which {wanted} do you mean?"),), (wanted,))


def read_out(tools: tuple[Message, ...], fitting: dict[str, str]) -> str:
    """Every declared tool: its name, what it is for, and no; or, for those in ``fitting``, what is said there."""
    names = [one["function"]["name"] for one in tools]
    told = (f"{name} for {fitting.get(name) or f'{subject_of(name)} no'}" for name in names)
    return f"Tools: {', '.join(told)}."


def _told(pairs: list[tuple[Topic, str]], joined: str) -> str:
    return joined.join(f"{one.noun} {subject}" for one, subject in pairs)


def subject_of(name: str) -> str:
    """The noun in a tool's name: what is left without verbs."""
    return "_".join(part for part in name.split("_") if part not in _SAID_OF_NOUNS) or name


def lookup_dialogue(space: Space) -> Dialogue:
    among = topics(space, space.rng.choice((1, 1, 2, 2, 3)))
    tools = declarations(space, among)
    asked = among[0]
    first = lookup(space, [asked], [asked.subject(space)], tools)
    if space.chance(0.25):
        return Dialogue((first, follow_up(space, asked, tools)), tools)
    return Dialogue((first,), tools)


def parallel_dialogue(space: Space) -> Dialogue:
    among = topics(space, space.rng.choice((1, 2, 2, 3)))
    count = space.rng.choice((2, 2, 2, 3))
    several_tools = len(among) >= count and space.chance(0.6)
    return _asking(space, among, among[:count] if several_tools else [among[0]] * count)


def several_tools_dialogue(space: Space) -> Dialogue:
    among = topics(space, space.rng.choice((2, 2, 3, 3, 4)))
    return _asking(space, among, among[: min(len(among), space.rng.choice((2, 2, 2, 3)))])


def _asking(space: Space, among: list[Topic], asked: list[Topic]) -> Dialogue:
    tools = declarations(space, among)
    subjects: list[str] = []
    for one in asked:
        subjects.append(_other(space, one, subjects))
    return Dialogue((lookup(space, asked, subjects, tools),), tools)


def no_call_dialogue(space: Space) -> Dialogue:
    asked, *declared = topics(space, space.rng.choice((2, 2, 2, 3, 4)))
    tools = declarations(space, declared)
    return Dialogue((unfit(space, asked, tools),), tools)


def missing_question(space: Space) -> Dialogue:
    among = topics(space, space.rng.choice((1, 1, 2, 3)))
    tools = declarations(space, among)
    return Dialogue((missing(space, among[0], tools),), tools)


def supplied_dialogue(space: Space) -> Dialogue:
    """The argument comes with the next words of the user."""
    among = topics(space, space.rng.choice((1, 1, 2, 3)))
    tools = declarations(space, among)
    asked = missing(space, among[0], tools)
    subject = among[0].subject(space)
    user = subject if space.chance(0.6) else space.rng.choice(("For {}.", "I mean {}.", "{}, please.")).format(subject)
    return Dialogue((asked, lookup(space, [among[0]], [subject], tools, user)), tools)


def _other(space: Space, one: Topic, taken: list[str]) -> str:
    while (subject := one.subject(space)) in taken:
        pass
    return subject


def _phrase(space: Space, asked: tuple[str, ...] = _AMONG) -> str:
    """A question or a demand; ``asked`` is what stands in it."""
    style = space.rng.randrange(7)
    if style < 3:
        phrase = space.phrase(_ASK, _ARTICLE, asked, _WHEN) + "?"
    elif style < 5:
        phrase = space.phrase(_DEMAND, _ARTICLE, asked, _WHEN) + "."
    elif style == 5 or "{subject}" not in asked[0]:
        like = tuple(each.replace("{noun}", "{noun} like", 1) for each in asked)
        phrase = space.phrase(_WHAT, ("the",), like, _WHEN) + "?"
    else:
        phrase = space.phrase(("{subject}",), (":", ",", "-"), _OF_IT, _COURTESY)
    return tidy(phrase.replace("_", " "))


def _question(space: Space, pairs: list[tuple[Topic, str]]) -> str:
    one, subject = pairs[0]
    joined = space.rng.choice(_AND)
    if len(pairs) == 1:
        return _phrase(space).format(noun=one.noun, join=one.join, subject=subject)
    subjects = [subject for _, subject in pairs]
    if all(other == one for other, _ in pairs):
        among = f"{', '.join(subjects[:-1])}{joined}{subjects[-1]}"
        return _phrase(space).format(noun=one.noun, join=one.join, subject=among)
    phrases = iter(lambda: _phrase(space), "")
    phrase = next(phrase for phrase in phrases if _AMONG[0] in phrase)
    head, tail = phrase.split(_AMONG[0])
    parts = [f"{other.noun} {other.join} {subject}" for other, subject in pairs]
    return f"{head}{', the '.join(parts[:-1])}{joined}the {parts[-1]}{tail}"


def _result(space: Space, one: Topic, subject: str) -> tuple[str, str]:
    """What the tool returns, and how the answer tells it."""
    value = space.value()
    style = space.rng.randrange(6)
    if style == 0:
        return value, value
    if style == 1:
        unit = space.rng.choice(known.UNITS)
        return f"{value} {unit}", f"{value} {unit}"
    typed: Any = json.loads(value) if value[0].isdigit() and _is_number(value) else value
    fields: dict[str, Any] = {one.noun: typed}
    if style in (2, 3):
        return json.dumps(fields), value
    if style == 4:
        unit = space.rng.choice(known.UNITS)
        return json.dumps({one.param: subject, one.noun: typed, "unit": unit}, ensure_ascii=False), f"{value} {unit}"
    key = next(noun for noun in iter(lambda: space.noun(known.PLACE_NOUNS), "") if noun != one.noun)
    other = space.word()
    return json.dumps({one.noun: typed, key: other}, ensure_ascii=False), f"{value}, {key} {other}"


def _is_number(value: str) -> bool:
    """As JSON writes it: read and printed again it is the same."""
    try:
        return json.dumps(json.loads(value)) == value
    except ValueError:
        return False
