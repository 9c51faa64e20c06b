"""A fleet under test of several machines: ``expertfleet head``, a ``node`` for each worker and a ``gateway``.

Knows nothing of loads and steps. Each process has a loopback address of its own and is started again when it ends, as whoever
supervises a machine's processes does; the head stays away while it is told to.
"""

import asyncio
import contextlib
import sys
import time
from pathlib import Path

from expertfleet.cluster.commands.gateway_process import claim_port
from expertfleet.cluster.ray.process_reaper import alive, descendants

from .fleet import FleetError, named_below
from .plan import HEAD, HEAD_NODE, RAYLET, FleetSize
from .roles import Roles

_HEAD_HOST = "127.0.0.2"
_LOOK_S = 0.2
_GONE_S = 30.0
_LEAVE_S = 20
_FIRST_WORDS = {HEAD_NODE: "head", "gateway-0": "gateway"}


class Nodes(Roles):
    def __init__(self, model: Path, size: FleetSize, tmp: Path) -> None:
        super().__init__(tmp)
        self._size, self._tmp = size, tmp
        self._commands = self._all_commands(str(model))
        self._supervision: asyncio.Task[None] | None = None
        self._is_head_away = False
        self._left_behind: list[int] = []

    async def wait_ready(self, within_s: float) -> None:
        give_up = time.monotonic() + within_s
        # One after the other: Ray gives up on a node that is slow to start.
        for name, command in self._commands.items():
            self.start(name, *command)
            await self.said(name, _FIRST_WORDS.get(name, "node"), give_up)
        self.url = await self.said("gateway-0", "gateway", give_up)
        await self.find_admin()
        await self.wait_settled(self._size.expert_shards + self._size.attention_workers, give_up)
        self._supervision = asyncio.create_task(self._supervise())

    async def pid(self, target: str) -> int:
        if not target.startswith(RAYLET):
            return await super().pid(target)
        found = named_below(self.running[target.removeprefix(RAYLET)].pid, "raylet")
        if found is None:
            raise FleetError(f"{target} has no running process")
        return found

    def head(self) -> int | None:
        return named_below(self.running[HEAD_NODE].pid, HEAD)

    def take_head_away(self) -> set[int]:
        """Kills all that runs there; returns the pids."""
        self._is_head_away = True
        process = self.running[HEAD_NODE]
        self._left_behind = [process.pid, *descendants(process.pid)]
        process.kill()
        process.wait()
        return set(self._left_behind)

    async def bring_head_back(self) -> None:
        give_up = time.monotonic() + _GONE_S
        while any(map(alive, self._left_behind)):
            if time.monotonic() > give_up:
                raise FleetError(f"processes of the head are still there {_GONE_S:g} s after it was killed")
            await asyncio.sleep(_LOOK_S)
        self._is_head_away = False  # it is started again with its storage, as every other is

    async def end(self) -> list[str]:
        await self._stop_supervising()
        below = [pid for process in self.running.values() for pid in descendants(process.pid)]
        wrong = await super().end()
        wrong += [f"process {pid} was left" for pid in below if alive(pid)]
        return wrong + [f"{path} was left" for path in self._tmp.glob("fleet-*")]

    async def close(self) -> None:
        await self._stop_supervising()
        below = [pid for process in self.running.values() for pid in descendants(process.pid)]
        await super().close()
        give_up = time.monotonic() + _GONE_S
        while any(map(alive, below)) and time.monotonic() < give_up:
            await asyncio.sleep(_LOOK_S)

    async def _supervise(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for name, process in list(self.running.items()):
                if process.poll() is not None and not (name == HEAD_NODE and self._is_head_away):
                    self.start(name, *self._commands[name])

    async def _stop_supervising(self) -> None:
        if self._supervision is not None:
            self._supervision.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervision

    def _all_commands(self, model: str) -> dict[str, list[str]]:
        size = self._size
        ray, controller = (claim_port(_HEAD_HOST, 0, "") for _ in range(2))
        api, admin = (claim_port("127.0.0.1", 0, "") for _ in range(2))
        store = f"--storage={self._tmp / 'store'}"
        ports = (f"--ray-port={ray}", f"--controller-port={controller}", f"--replicas={size.replicas}")
        gateway = (f"--port={api}", f"--admin-port={admin}", "--seat=gateway-0")
        follows = f"--controller={_HEAD_HOST}:{controller}"
        commands = {HEAD_NODE: ["head", store, f"--host={_HEAD_HOST}", *ports]}
        for subnet, (role, count) in enumerate(
            (("attention", size.attention_workers), ("expert", size.expert_shards)), 1
        ):
            for number in range(count):
                seat, host = f"{role}-{number}", f"127.0.{subnet}.{number + 1}"
                own = (f"--seat={seat}", f"--host={host}", f"--node=machine-{seat}", f"--leave-s={_LEAVE_S}")
                commands[seat] = ["node", role, *own, f"--head={_HEAD_HOST}:{ray}", follows]
        commands["gateway-0"] = ["gateway", follows, *gateway]
        return {
            name: [sys.executable, "-m", "expertfleet.cluster", *words, f"--model={model}"]
            for name, words in commands.items()
        }
