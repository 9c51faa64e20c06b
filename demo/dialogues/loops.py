"""Tools that are called again and again, with fresh thinking before every call, until a result says that it is done.

Knows nothing of chats. A pager takes the number to read next; a counter takes nothing.
"""

import json

from .parts import Call, Dialogue, Step, Turn, tool
from .space import Space, words

_THINGS = words("page chapter row step batch part slide record section block file entry line task item")
_READING = ("read", "get", "load", "fetch", "open")
_ADVANCING = ("advance", "next", "increment", "poll", "run")
_PAGER = (
    "Read every {thing} with {name} until the last one.",
    "Use {name} to go through all {thing}s, one by one.",
    "Go through the {thing}s one by one with {name} until it is done.",
    "Call {name} for {thing} 1, 2, 3 and so on until it says done.",
    "Please call {name} for one {thing} after the other until done is true.",
    "Start at {thing} 1 and call {name} until it is done.",
    "Read all {thing}s.",
    "Call {name} again and again, from {thing} 1 to the end.",
    "Load all {thing}s, starting with {thing} 1.",
    "Please read all {thing}s from 1 to the last one with {name}.",
)
_COUNTER = (
    "Call {name} until it says done.",
    "Call {name} again and again until it is done.",
    "Use {name} until done is true.",
    "Please call {name} until it says that it is done.",
    "Keep calling {name} until it is done.",
    "Run {name} until the end.",
    "Repeat {name} until done.",
    "Call {name} as often as needed until it is done.",
    "Go on with {name} until done is true.",
    "Please use {name} again and again until it says done.",
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
    user = space.phrase(_PAGER if pager else _COUNTER).format(name=name, thing=thing)
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
