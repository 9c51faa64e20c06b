"""Requests with several arguments of different types, for tools that do something.

Knows nothing of chats. Each Action says how it is asked for, what its tool is called and what its arguments are.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import space as known
from .lookups import read_out, subject_of, topics
from .parts import Call, Dialogue, Message, Step, Turn, tool
from .space import Space, tidy, words

_DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_ROOMS = words("kitchen bedroom office hall garage bathroom cellar attic garden library")
_POLITE = ("", "Please", "Can you", "Could you", "I want you to", "please", "Now", "Would you", "You should", "Then")
_ENDS = ("", ".", "?", ", please.", " now.", " for me.")

Make = Callable[[Space], Any]


@dataclass(frozen=True)
class Action:
    """``ways`` to ask: the texts' fields are the names of the arguments, plus ``thing``."""

    thing: str
    names: tuple[str, ...]
    arguments: dict[str, Make]
    ways: tuple[str, ...]


def _count(least: int, most: int) -> Make:
    return lambda space: int(space.draw(lambda: str(space.rng.randint(least, most))))


def _one_of(words: list[str]) -> Make:
    return lambda space: space.rng.choice(words)


def _text(space: Space) -> str:
    return " ".join(space.word() for _ in range(space.rng.randint(1, 4)))


def _action(space: Space) -> Action:
    """Half of the verbs and things are made of syllables, so that names have to be read from the declaration."""
    thing = space.noun(known.PRODUCTS + known.PLACE_NOUNS)
    kinds = (
        Action(
            f"{thing}",
            (f"set_{thing}", f"change_{thing}", f"adjust_{thing}"),
            {"room": _one_of(_ROOMS), "level": _count(0, 100)},
            ("set the {thing} in the {room} to {level}", "change the {thing} in the {room} to {level}"),
        ),
        Action(
            f"{thing}",
            (f"order_{thing}", f"buy_{thing}", f"purchase_{thing}"),
            {"quantity": _count(2, 99), "address": Space.city},
            ("order {quantity} {thing} to {address}", "buy {quantity} {thing} and send them to {address}"),
        ),
        Action(
            "message",
            ("send_message", "post_message", "message_user"),
            {"recipient": Space.person, "text": _text},
            ("send {recipient} the message '{text}'", "send the message '{text}' to {recipient}"),
        ),
        Action(
            f"{thing}",
            (f"book_{thing}", f"reserve_{thing}", f"schedule_{thing}"),
            {"day": _one_of(_DAYS), "name": Space.person},
            ("book the {thing} on {day} for {name}", "reserve the {thing} for {name} on {day}"),
        ),
        Action(
            "distance",
            ("get_distance", "measure_distance", "compute_distance"),
            {"origin": Space.city, "destination": Space.city},
            ("get the distance from {origin} to {destination}", "tell me how far it is from {origin} to {destination}"),
        ),
        Action(
            "timer",
            ("set_timer", "start_timer", "create_timer"),
            {"minutes": _count(1, 120)},
            ("set a timer for {minutes} minutes", "start a timer of {minutes} minutes"),
        ),
        Action(
            f"{thing}",
            (f"transfer_{thing}", f"move_{thing}", f"ship_{thing}"),
            {"source": Space.city, "target": Space.city, "amount": _count(1, 500)},
            ("move {amount} {thing} from {source} to {target}", "ship {amount} {thing} from {source} to {target}"),
        ),
    )
    return space.rng.choice(kinds)


def action_dialogue(space: Space) -> Dialogue:
    action = _action(space)
    name = space.rng.choice(action.names)
    arguments = {key: make(space) for key, make in action.arguments.items()}
    others = [
        one.declaration(space) for one in topics(space, space.rng.choice((0, 0, 1, 2))) if one.noun != action.thing
    ]
    tools: list[Message] = [_declaration(space, action, name, arguments), *others]
    space.rng.shuffle(tools)
    turn = _turn(space, action, name, arguments, tuple(tools))
    return Dialogue((turn,), tuple(tools))


def _declaration(space: Space, action: Action, name: str, arguments: dict[str, Any]) -> Message:
    properties = {key: {"type": "integer" if isinstance(value, int) else "string"} for key, value in arguments.items()}
    verb = name.split("_")[0].capitalize()
    description = space.rng.choice(
        (f"{verb} the {action.thing}.", f"{verb} {action.thing}", "", f"{verb}s a {action.thing}.")
    )
    return tool(name, description, properties, list(arguments))


def _turn(space: Space, action: Action, name: str, arguments: dict[str, Any], tools: tuple[Message, ...]) -> Turn:
    # Held-out requests differ in how they are put as well as in every name.
    user = tidy(space.phrase(_POLITE, action.ways, _ENDS)).format(thing=action.thing, **arguments)
    user = f"{user[0].upper()}{user[1:]}" if space.chance(0.8) else user
    told = str(space.rng.randint(1, 9999)) if space.chance(0.7) else space.word()
    key = space.rng.choice(("id", "number", "result", "code", "total", "value"))
    result = json.dumps({key: int(told) if told.isdigit() else told}) if space.chance(0.8) else f"{key} {told}"
    given = ", ".join(f"{argument} {value}" for argument, value in arguments.items())
    fitting = f"{subject_of(name)} yes with {given}"
    reasoning = f"Asked: {action.thing} with {given}. {read_out(tools, {name: fitting})} Call {name} with {given}."
    answer = f"Done: the {key} is {told}."
    steps = (Step(reasoning, "", (Call(name, arguments, result),)), Step("I have the result.", answer))
    return Turn("action", user, steps, (told,))
