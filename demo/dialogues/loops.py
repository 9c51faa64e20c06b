"""Tools that are called again and again, with fresh thinking before every call, until a result says that it is done.

Knows nothing of chats. A pager takes the number to read next; a counter takes nothing.
"""

import json

from .parts import Call, Dialogue, Step, Turn, tool
from .space import Space, words

_THINGS = words("page chapter row step batch part slide record section block file entry line task item")
_READING = ("read", "get", "load", "fetch", "open")
_ADVANCING = ("advance", "next", "increment", "poll", "run")
# A phrasing is one of each row's parts.
_OPENERS = ("", "", "Please", "Now", "I want you to", "Can you", "Then", "You should")
_UNTIL = (
    "until it is done.",
    "until it says done.",
    "until done is true.",
    "until it says that it is done.",
    "until the end.",
    "to the end.",
    "as often as needed.",
)
_PAGER = (
    "read every {thing} with {name}",
    "use {name} to go through all {thing}s, one by one,",
    "go through the {thing}s one by one with {name}",
    "call {name} for {thing} 1, 2, 3 and so on",
    "call {name} for one {thing} after the other",
    "start at {thing} 1 and call {name}",
    "read all {thing}s",
    "call {name} again and again, from {thing} 1,",
    "load all {thing}s, starting with {thing} 1,",
)
_COUNTER = (
    "call {name}",
    "call {name} again and again",
    "use {name}",
    "keep calling {name}",
    "run {name}",
    "repeat {name}",
    "go on with {name}",
)


def loop_dialogue(space: Space, steps: int) -> Dialogue:
    """``steps`` calls, the last of which says that it is done."""
    thing = space.noun(_THINGS)
    pager = space.chance(0.5)
    name = f"{space.rng.choice(_READING if pager else _ADVANCING)}_{thing}"
    properties = {thing: {"type": "integer"}} if pager else {}
    description = (
        f"Read one {thing}.",
        f"Returns the {thing} and whether it is the last one.",
        f"One {thing} per call.",
    )
    declared = (tool(name, space.rng.choice(description), properties, list(properties)),)
    user = space.phrase(_OPENERS, _PAGER if pager else _COUNTER, _UNTIL).format(name=name, thing=thing)
    user = f"{user[0].upper()}{user[1:]}"
    key = thing if pager else space.rng.choice(("count", "value", "step", "number"))
    done = []
    reasoning = f"{thing} 1 is first." if pager else f"Call {name}."
    for index in range(1, steps + 1):
        arguments = {thing: index} if pager else {}
        result = json.dumps({key: index, "done": index == steps})
        done.append(Step(reasoning, "", (Call(name, arguments, result),)))
        reasoning = f"{key} {index} is not done. Next is {index + 1}."
    answer = f"It is done: {key} {steps} was the last."
    done.append(Step(f"{key} {steps} is done.", answer))
    return Dialogue((Turn("loop", user, tuple(done), (f"{key} {steps}",)),), declared)
