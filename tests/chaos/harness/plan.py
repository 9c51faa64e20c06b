"""What a chaos plan says: a fleet, a load on it, steps that hurt it, and what must hold all the same.

Knows nothing of files or processes. Every value is checked where it stands, and what contradicts another part of the plan in
``Plan``; messages begin with the key.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from expertfleet.settings.option import within

from .scaling import Scaling

Action = Literal[
    "kill", "terminate", "stop", "cut", "delay", "loss", "corrupt", "scale", "drain", "away", "fill", "crash"
]
_ON_LINKS: tuple[Action, ...] = ("cut", "delay", "loss", "corrupt")
_WITHOUT_TARGET: tuple[Action, ...] = ("scale", "fill", "crash")
HEAD = "gcs_server"
HEAD_NODE = "head"
RAYLET = "raylet of "
_SEAT = re.compile(r"(expert|attention|gateway)-(0|[1-9][0-9]{0,3})")
_RANDOM = {"random expert": "expert", "random attention": "attention"}
_WHEN = ("at_s", "at_token", "after_s", "after_recovery_s")
_ROUND_PAUSE_S = 1.0


@dataclass(frozen=True)
class FleetSize:
    """``[fleet]``: what ``expertfleet serve`` starts on this machine.

    With ``machines`` nothing is started again: each expert shard is a plain process on a machine of its own (a network
    namespace), the others are where the client is. With ``nodes`` there is a head, a node for each worker, and a gateway, as
    ``expertfleet head``, ``node`` and ``gateway`` start them, each with a loopback address of its own. ``tls`` is for machines:
    every channel has it. With ``disk_mib`` all that the fleet writes is on a disk of that size. ``max_worker_deaths`` is what a
    request may live through, for plans that kill its worker again and again.
    """

    expert_shards: int = 3
    replicas: int = 2
    attention_workers: int = 1
    machines: bool = False
    nodes: bool = False
    tls: bool = False
    disk_mib: int = 0
    max_worker_deaths: int | None = None

    def __post_init__(self) -> None:
        if self.machines and self.nodes:
            raise ValueError("nodes: True is not for a fleet of machines; give one of both")
        if self.tls and not self.machines:
            raise ValueError("tls: True is for a fleet of machines alone; give [fleet] machines = true")
        if self.disk_mib:
            within("disk_mib", self.disk_mib, 64, 1 << 20)
        if self.max_worker_deaths is not None:
            within("max_worker_deaths", self.max_worker_deaths, 1, 1000)
            if self.machines or self.nodes:
                raise ValueError(f"max_worker_deaths: {self.max_worker_deaths} is for a fleet that serve starts alone")
        within("expert_shards", self.expert_shards, 1, 64)
        within("replicas", self.replicas, 1, self.expert_shards)
        within("attention_workers", self.attention_workers, 1, 64)

    @property
    def flags(self) -> tuple[str, ...]:
        return (
            f"--expert-shards={self.expert_shards}",
            f"--replicas={self.replicas}",
            f"--attention-workers={self.attention_workers}",
            *(() if self.max_worker_deaths is None else (f"--max-worker-deaths={self.max_worker_deaths}",)),
        )


@dataclass(frozen=True)
class Load:
    """``[load]``: so many streams at once, each the same request again and again while steps are under way.

    Prompts have at least ``prompt_tokens`` tokens, stream after stream the next of the list. ``mixed`` samples every second
    stream. ``seed`` draws prompts, the requests' seeds and the steps' random targets. Where ``calm_gap_ms`` is given, half the
    streams are left out, again and again, until calm's 99.9th percentile of gaps is no greater or four or fewer are left.
    """

    max_tokens: int
    streams: int = 8
    prompt_tokens: tuple[int, ...] = (40, 400)
    sampling: Literal["greedy", "seeded", "mixed"] = "mixed"
    ignore_eos: bool = True
    seed: int = 1
    calm_gap_ms: float | None = None

    def __post_init__(self) -> None:
        if self.calm_gap_ms is not None:
            within("calm_gap_ms", self.calm_gap_ms, 1, 60_000)
        within("max_tokens", self.max_tokens, 1, 1 << 20)
        within("streams", self.streams, 1, 1024)
        within("seed", self.seed, 0, (1 << 31) - 1)
        if not self.prompt_tokens:
            raise ValueError("prompt_tokens: [] names no length")
        for length in self.prompt_tokens:
            within("prompt_tokens", length, 1, 1 << 20)


@dataclass(frozen=True)
class Step:
    """``[[step]]``: one action at one target, at one time.

    ``at_s`` counts from the start of the load; ``at_token`` is the moment when no stream is left whose first answer has fewer
    tokens; ``after_s`` counts from the step before; ``after_recovery_s`` counts from the moment when the fleet has got over every
    step before. ``kill`` is SIGKILL, ``terminate`` SIGTERM, ``stop`` SIGSTOP and ``for_s`` seconds later SIGCONT; ``cut`` takes a
    machine off the network for ``for_s`` seconds; ``delay`` has each packet of its link, in both directions, come ``ms``
    milliseconds later, ``loss`` loses ``percent`` of them and ``corrupt`` turns over a bit in so many, for as long; ``fill`` leaves
    no room on the fleet's disk for ``for_s`` seconds; ``crash`` sends one more request, which kills any worker that runs it; ``drain`` and ``scale`` (``to`` so many expert
    shards) are the ``expertfleet`` commands of that name; ``away`` kills the head's node with all that runs there, which comes
    back with its storage ``for_s`` seconds later.
    """

    do: Action
    target: str = ""
    at_s: float | None = None
    at_token: int | None = None
    after_s: float | None = None
    after_recovery_s: float | None = None
    for_s: float | None = None
    ms: float | None = None
    percent: float | None = None
    to: int | None = None

    def __post_init__(self) -> None:
        for name in ("at_s", "after_s", "after_recovery_s"):
            if (seconds := getattr(self, name)) is not None:
                within(name, seconds, 0, 86_400)
        if self.at_token is not None:
            within("at_token", self.at_token, 1, 1 << 20)
        self._check_only("for_s", ("stop", *_ON_LINKS, "away", "fill"), self.for_s)
        self._check_only("ms", ("delay",), self.ms)
        self._check_only("percent", ("loss", "corrupt"), self.percent)
        self._check_only("to", ("scale",), self.to)
        if self.for_s is not None:
            within("for_s", self.for_s, 0.1, 3600)
        if self.ms is not None:
            within("ms", self.ms, 1, 10_000)
        if self.percent is not None:
            within("percent", self.percent, 0.1, 100)
        if self.to is not None:
            within("to", self.to, 1, 64)
        self._check_target()

    @property
    def when(self) -> list[str]:
        return [name for name in _WHEN if getattr(self, name) is not None]

    @property
    def machine(self) -> int:
        """The number of an expert shard's, in a fleet of machines."""
        return int(self.target.rpartition("-")[2])

    def drawn(self, rng: random.Random, size: FleetSize) -> "Step":
        """The same with a random target decided."""
        if self.target not in _RANDOM:
            return self
        role = _RANDOM[self.target]
        return replace(self, target=f"{role}-{rng.randrange(_count(role, size))}")

    @property
    def seat(self) -> str:
        """Of the target, or of the worker on the target's node."""
        return self.target.removeprefix(RAYLET)

    def check_in(self, size: FleetSize) -> None:
        if (match := _SEAT.fullmatch(self.seat)) and int(match[2]) >= _count(match[1], size):
            count = _count(match[1], size)
            raise ValueError(f"target: {self.target!r} is not in a fleet whose {match[1]} seats are 0 to {count - 1}")
        if size.machines and self.do not in ("stop", *_ON_LINKS):
            raise ValueError(f"do: {self.do!r} is not for a fleet of machines, where nothing is started again")
        if self.do in _ON_LINKS and not size.machines:
            raise ValueError(f"do: {self.do!r} is for a fleet of machines alone; give [fleet] machines = true")
        if size.nodes and self.do in ("scale", "drain"):
            raise ValueError(f"do: {self.do!r} is not for a fleet of nodes, whose seats are those that nodes offer")
        if self.do == "fill" and not size.disk_mib:
            raise ValueError("do: 'fill' is for a fleet with a disk of its own; give [fleet] disk_mib")
        if self.do == "crash" and (size.machines or size.nodes):
            raise ValueError("do: 'crash' is not for a fleet of machines or nodes; leave machines and nodes out")
        if not size.nodes and self.do == "away":
            raise ValueError("do: 'away' is for a fleet of nodes alone; give [fleet] nodes = true")
        if not size.nodes and self.target.startswith(RAYLET):
            raise ValueError(f"target: {self.target!r} is for a fleet of nodes alone; give [fleet] nodes = true")

    def _check_only(self, name: str, actions: tuple[Action, ...], value: float | None) -> None:
        if (self.do in actions) == (value is None):
            *first, last = map(repr, actions)
            only = f"{value} is for {' and '.join([', '.join(first), last] if first else [last])} alone, not for {self.do!r}"
            raise ValueError(f"{name}: {f'{self.do!r} needs it' if value is None else only}")

    def _check_target(self) -> None:
        if self.do in _WITHOUT_TARGET:
            if self.target:
                raise ValueError(f"target: {self.target!r} is not for {self.do!r}, which is about the whole fleet")
            return
        allowed = [HEAD_NODE] if self.do == "away" else ["expert-N", "random expert"]
        if self.do not in (*_ON_LINKS, "away"):
            allowed += ["attention-N", "gateway-N", "random attention"]
        if self.do not in (*_ON_LINKS, "away", "drain"):
            allowed += ["controller", HEAD]
        if self.do == "kill":
            allowed += [f"{RAYLET}expert-N", f"{RAYLET}attention-N"]
        if _SEAT.sub(r"\1-N", self.target) not in allowed:
            raise ValueError(f"target: {self.target!r} is not one of {', '.join(allowed)}, as {self.do!r} needs")


@dataclass(frozen=True)
class Soak:
    """``[soak]``: for so many minutes one of the ``[[soak.step]]``, drawn by the load's seed, then a pause within ``pause_s``.

    The pause begins when the fleet has got over the step.
    """

    minutes: float
    step: tuple[Step, ...]
    pause_s: tuple[float, ...] = (1.0, 5.0)

    def __post_init__(self) -> None:
        within("minutes", self.minutes, 0.1, 10_000)
        if not self.step:
            raise ValueError("step: a soak needs at least one to draw from")
        for index, step in enumerate(self.step):
            if step.when:
                raise ValueError(f"step[{index}].{step.when[0]}: a soak's steps come when the pause is over")
        if len(self.pause_s) != 2 or not 0 <= self.pause_s[0] <= self.pause_s[1] <= 3600:
            raise ValueError(f"pause_s: {list(self.pause_s)} is not [shortest, longest] within 0 to 3600")

    def draw(self, rng: random.Random, size: FleetSize) -> Iterator[Step]:
        """Steps without end."""
        while True:
            pause_s = rng.uniform(*self.pause_s)
            yield replace(rng.choice(self.step).drawn(rng, size), after_recovery_s=pause_s)


@dataclass(frozen=True)
class Expect:
    """``[expect]``: the most of each that the plan tolerates; what is not given is only reported.

    ``gap_beyond_calm_ms`` is the worst gap between two chunks of a stream less the calm run's 99.9th percentile. The others are
    about processes: of those that live throughout, how many more files each has open, by how much its memory has grown and (of
    expert shards) how much it has read since the load began, or since ``scaling.baseline``; ``replaced`` counts the workers
    that are another process although no step ended theirs.
    """

    lost: int
    different: int
    worst_gap_ms: float | None = None
    gap_beyond_calm_ms: float | None = None
    recovery_s: float | None = None
    fd_growth: int | None = None
    rss_growth_percent: float | None = None
    read_mib: float | None = None
    replaced: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            within(field.name, getattr(self, field.name) or 0, 0, 1 << 30)


@dataclass(frozen=True)
class Plan:
    """``repeat``: so many rounds of the steps, each as soon as the fleet has got over the one before.

    No round, cycle or soak's step begins later than ``within_min`` minutes after the fleet was asked to start.
    """

    title: str
    load: Load
    expect: Expect
    fleet: FleetSize = FleetSize()
    step: tuple[Step, ...] = ()
    repeat: int = 1
    soak: Soak | None = None
    scaling: Scaling | None = None
    within_min: float | None = None

    def __post_init__(self) -> None:
        if self.within_min is not None:
            within("within_min", self.within_min, 0.1, 10_000)
        if not self.step and self.soak is None and self.scaling is None:
            raise ValueError("step: the plan has neither steps nor a soak nor scaling")
        within("repeat", self.repeat, 1, 10_000)
        if self.repeat > 1 and not self.step:
            raise ValueError(f"repeat: {self.repeat} rounds of no step")
        for index, step in enumerate(self.step):
            _named(f"step[{index}]", step, self.fleet)
            if len(step.when) != 1:
                given = " and ".join(step.when) or "nothing"
                raise ValueError(f"step[{index}]: {given} says when; give one of {', '.join(_WHEN)}")
            if step.at_token is not None and step.at_token >= self.load.max_tokens:
                last = self.load.max_tokens - 1
                raise ValueError(
                    f"step[{index}].at_token: {step.at_token} is past {last}, the last but one of max_tokens"
                )
            if self.repeat > 1 and index and step.when[0] in ("at_s", "at_token"):
                raise ValueError(
                    f"step[{index}].{step.when[0]}: a round cannot wait for a moment of the load again; give after_s or "
                    "after_recovery_s"
                )
        for index, step in enumerate(self.soak.step if self.soak else ()):
            _named(f"soak.step[{index}]", step, self.fleet)
        if self.scaling is not None:
            self.scaling.check_in(self.fleet.expert_shards, is_scalable=not (self.fleet.machines or self.fleet.nodes))

    def has(self, action: Action) -> bool:
        """Whether some step does that."""
        return any(step.do == action for step in (*self.step, *(self.soak.step if self.soak else ())))

    def rounds(self) -> Iterator[Step]:
        """Every step in its order, ``repeat`` times."""
        for number in range(self.repeat):
            for index, step in enumerate(self.step):
                is_first_again = number and not index and step.after_recovery_s is None
                again = {"at_s": None, "at_token": None, "after_s": None, "after_recovery_s": _ROUND_PAUSE_S}
                yield replace(step, **again) if is_first_again else step


def _named(name: str, step: Step, size: FleetSize) -> None:
    try:
        step.check_in(size)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None


def _count(role: str, size: FleetSize) -> int:
    return {"expert": size.expert_shards, "attention": size.attention_workers, "gateway": 1}[role]
