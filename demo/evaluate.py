"""``python -m expertfleet.demo.evaluate --url URL``: how well a served nano-k2 does what it was trained for.

Knows nothing of the model but its API. Cases are drawn at run time from the seed, in the space that training never saw
(numbers, names, nouns, tools, phrasings), and asked through the official client. Every rate has its 95 % Wilson interval
(Wilson, 1927), and the bound that lies nearer to failure must meet the limit.
"""

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from .conversation import Client, Reply, ToolCall
from .dialogues import actions, arithmetic, lookups, loops, talk
from .dialogues.mixture import with_idle_tools
from .dialogues.parts import Dialogue, Turn
from .dialogues.space import Space
from .questions import ask_decimals, ask_weather

_Z = 1.959964
_MAX_TOKENS = 400
_LOOP_STEPS = 30
_LONGER_LOOPS = (40, 50, 60, 80, 100)


@dataclass
class Score:
    """``limit`` is the least rate allowed, or the greatest if ``at_most``; without a limit it is only told."""

    name: str
    limit: float | None = None
    at_most: bool = False
    outcomes: list[bool] = field(default_factory=list)

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(sum(self.outcomes), len(self.outcomes))

    @property
    def met(self) -> bool:
        low, high = self.interval
        return self.limit is None or (high <= self.limit if self.at_most else low >= self.limit)

    def line(self) -> str:
        low, high = self.interval
        rate = (
            f"{100 * sum(self.outcomes) / len(self.outcomes):6.2f} % of {len(self.outcomes):4}"
            if self.outcomes
            else "-"
        )
        limit = "" if self.limit is None else f"{'at most' if self.at_most else 'at least'} {100 * self.limit:g} %"
        verdict = "" if self.limit is None else "met" if self.met else "MISSED"
        return f"{self.name:34} {rate:20} {100 * low:6.2f} to {100 * high:6.2f} %  {limit:14} {verdict}"


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a rate; (0, 1) when nothing was asked."""
    if not total:
        return 0.0, 1.0
    rate, square = hits / total, _Z**2 / total
    centre = (rate + square / 2) / (1 + square)
    half = _Z * math.sqrt(rate * (1 - rate) / total + square / (4 * total)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


class Examination:
    def __init__(self, client: Client, seed: int, at_once: int) -> None:
        self._client, self._seed = client, seed
        self._gate = asyncio.Semaphore(at_once)
        self.wrong: list[str] = []

    async def answers(
        self, name: str, make: Callable[[Space], Turn], cases: int, limit: float | None = None
    ) -> list[Score]:
        """Questions without tools: the answer must hold the turn's facts."""
        score = Score(name, limit)

        async def one(space: Space) -> None:
            dialogue = Dialogue((make(space),))
            reply = await self._client.answer(dialogue.question())
            self._note(score, dialogue, [reply], not reply.calls and _tells(reply, dialogue.last))

        await self._all(name, cases, one)
        return [score]

    async def calls_due(self, cases: int) -> list[Score]:
        called, told = Score("tool call when one is due", 0.95), Score("answer uses the result", 0.95)

        async def one(space: Space) -> None:
            make = space.rng.choices(
                (lookups.lookup_dialogue, lookups.parallel_dialogue, actions.action_dialogue), (5, 2, 3)
            )[0]
            dialogue: Dialogue = make(space)
            results = {(call.name, _canonical(call.arguments)): call.result for call in dialogue.last.calls}
            replies = await self._client.converse(
                dialogue.question(),
                dialogue.tools,
                lambda call: results.get(_signature(call), "error: no such call"),
                2,
            )
            made = [_signature(call) for reply in replies for call in reply.calls]
            right = made == [(call.name, _canonical(call.arguments)) for call in dialogue.last.calls]
            self._note(called, dialogue, replies, right)
            if right:
                self._note(told, dialogue, replies, _tells(replies[-1], dialogue.last))

        await self._all("due", cases, one)
        return [called, told]

    async def no_calls_due(self, cases: int) -> list[Score]:
        called = Score("tool call when none is due", 0.02, at_most=True)
        asked_back = Score("asks back for a missing argument")

        async def one(space: Space) -> None:
            makes: tuple[Callable[[Space], Dialogue], ...] = (
                lookups.no_call_dialogue,
                lookups.missing_question,
                with_idle_tools(talk.talk),
                with_idle_tools(arithmetic.comparison),
                with_idle_tools(arithmetic.addition),
            )
            (make,) = space.rng.choices(makes, (4, 2, 2, 1, 1))
            dialogue = make(space)
            reply = await self._client.answer(dialogue.question(), dialogue.tools)
            self._note(called, dialogue, [reply], bool(reply.calls), bad=True)
            if dialogue.last.kind == "missing argument":
                self._note(asked_back, dialogue, [reply], not reply.calls and _tells(reply, dialogue.last))

        await self._all("none due", cases, one)
        return [called, asked_back]

    async def loops(self, cases: int) -> list[Score]:
        score = Score(f"tool loop of {_LOOP_STEPS} steps", 0.90)

        async def one(space: Space) -> None:
            score.outcomes.append(await self._loop(space, _LOOP_STEPS))

        await self._all("loops", cases, one)
        return [score]

    async def longest_loop(self) -> int:
        longest = 0
        for steps in _LONGER_LOOPS:
            if not await self._loop(self._space("longest", steps), steps):
                break
            longest = steps
        return longest

    async def demonstration(self, runs: int) -> list[Score]:
        """The demonstration's own two questions; both must be right."""
        score = Score("the demonstration's questions", 0.90 if runs >= 100 else None)

        async def one(space: Space) -> None:
            client = self._client.seeded(space.rng.getrandbits(31))
            parts = [await ask_weather(client), await ask_decimals(client)]
            score.outcomes.append(all(right for _, right in parts))

        await self._all("demonstration", runs, one)
        return [score]

    async def _loop(self, space: Space, steps: int) -> bool:
        dialogue = loops.loop_dialogue(space, steps)
        due = [(call.name, _canonical(call.arguments)) for call in dialogue.last.calls]
        results = iter([call.result for call in dialogue.last.calls])
        made = []

        def run(call: ToolCall) -> str:
            made.append(_signature(call))
            return next(results, "error: it was done already")

        replies = await self._client.converse(dialogue.question(), dialogue.tools, run, steps + 2)
        right = made == due and _tells(replies[-1], dialogue.last)
        if not right:
            self.wrong.append(f"[loop] {dialogue.last.user!r}: {len(made)} calls, then {replies[-1].content!r}")
        return right

    def _note(self, score: Score, dialogue: Dialogue, replies: list[Reply], outcome: bool, bad: bool = False) -> None:
        score.outcomes.append(outcome)
        if outcome == bad:
            said = [
                (reply.reasoning, reply.content, [(call.name, call.arguments) for call in reply.calls])
                for reply in replies
            ]
            self.wrong.append(f"[{score.name}] {dialogue.last.user!r}: {said}")

    async def _all(self, name: str, cases: int, one: Callable[[Space], Awaitable[None]]) -> None:
        async def gated(index: int) -> None:
            async with self._gate:
                await one(self._space(name, index))

        await asyncio.gather(*(gated(index) for index in range(cases)))

    def _space(self, name: str, index: int) -> Space:
        return Space(random.Random(f"{self._seed} {name} {index}"), held_out=True)


def _tells(reply: Reply, turn: Turn) -> bool:
    return reply.finish_reason == "stop" and all(fact in reply.content for fact in turn.facts)


def _signature(call: ToolCall) -> tuple[str, str]:
    return call.name, _canonical(call.parsed())


def _canonical(arguments: Any) -> str:
    return json.dumps(arguments, sort_keys=True)


Part = Callable[[Examination, argparse.Namespace], Awaitable[list[Score]]]
_PARTS: dict[str, Part] = {
    "comparison": lambda it, asked: it.answers("decimal comparison", arithmetic.comparison, asked.cases, 0.95),
    "addition": lambda it, asked: it.answers("addition of 2 and 3 digits", _addition, asked.cases, 0.90),
    "subtraction": lambda it, asked: it.answers("subtraction of 2 and 3 digits", _subtraction, asked.cases),
    "due": lambda it, asked: it.calls_due(asked.cases),
    "none-due": lambda it, asked: it.no_calls_due(asked.cases),
    "loops": lambda it, asked: it.loops(asked.loops),
    "demonstration": lambda it, asked: it.demonstration(asked.runs),
}


async def evaluate(arguments: argparse.Namespace) -> int:
    client = Client(arguments.url, temperature=arguments.temperature, max_tokens=_MAX_TOKENS, seed=arguments.seed)
    examination = Examination(client, arguments.seed, arguments.at_once)
    print(f"seed {arguments.seed}, temperature {arguments.temperature:g}")
    met = True
    for name in arguments.only or _PARTS:
        began = time.monotonic()
        for score in await _PARTS[name](examination, arguments):
            print(score.line(), f"{time.monotonic() - began:7.1f} s", flush=True)
            met = met and score.met
    if "loops" in (arguments.only or _PARTS) and arguments.loops:
        print(f"longest loop finished: {await examination.longest_loop()} steps")
    for line in examination.wrong[: arguments.show_wrong]:
        print(line)
    await client.close()
    return 0 if met else 1


def _addition(space: Space) -> Turn:
    return arithmetic.addition(space, space.rng.choice((2, 3)))


def _subtraction(space: Space) -> Turn:
    return arithmetic.subtraction(space, space.rng.choice((2, 3)))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m expertfleet.demo.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--url", required=True, help="where the model is served, without /v1")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="(default: random)")
    parser.add_argument("--cases", type=int, default=500, help="cases of each kind (default: 500)")
    parser.add_argument("--loops", type=int, default=100, help="tool loops (default: 100)")
    parser.add_argument("--runs", type=int, default=100, help="runs of the demonstration's questions (default: 100)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--only", nargs="+", choices=_PARTS, help="only these kinds")
    parser.add_argument("--at-once", type=int, default=8, help="requests in flight (default: 8)")
    parser.add_argument("--show-wrong", type=int, default=10, metavar="N", help="print the first N failures")
    return asyncio.run(evaluate(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
