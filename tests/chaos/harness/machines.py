"""A fleet under test whose expert shards are on machines of their own: plain processes without Ray, joined by a network.

Knows nothing of loads and steps. Controller, attention workers and gateway are where the network's bridge is.
"""

import sys
import time
from pathlib import Path

import trustme

from expertfleet.benchmarks.networks.network import Network

from .plan import FleetSize
from .roles import Roles

_CONTROLLER = Path(__file__).with_name("controller.py")


class Machines(Roles):
    def __init__(self, model: Path, size: FleetSize, network: Network, tmp: Path) -> None:
        super().__init__(tmp)
        self._model, self._size, self._network = str(model), size, network
        if size.tls:
            self.environ["EXPERTFLEET_TLS_DIR"] = str(_certify(tmp / "tls"))

    async def wait_ready(self, within_s: float) -> None:
        give_up = time.monotonic() + within_s
        size, network = self._size, self._network
        sizes = (str(size.expert_shards), str(size.replicas))
        self.start("controller", sys.executable, str(_CONTROLLER), self._model, network.address, *sizes)
        controller = await self.said("controller", "listening", give_up)
        for number in range(size.expert_shards):
            seat = f"expert-{number}"
            flags = ("--seat", seat, "--controller", controller, "--host", network.machine(number))
            self.start(seat, *network.command(number, *self._role("expert_workers", *flags)))
        for number in range(size.attention_workers):
            seat = f"attention-{number}"
            flags = ("--seat", seat, "--controller", controller, "--host", network.address)
            self.start(seat, *self._role("attention_workers", *flags))
        self.start("gateway-0", *self._role("gateway", "--controller", controller, "--port", "0"))
        self.url = await self.said("gateway-0", "gateway", give_up)
        await self.find_admin()
        await self.wait_settled(size.expert_shards + size.attention_workers, give_up)

    def _role(self, role: str, *flags: str) -> list[str]:
        return [sys.executable, "-m", f"expertfleet.{role}", "--model", self._model, *flags]


def _certify(folder: Path) -> Path:
    """One certificate for all, as ``--tls-dir`` wants it."""
    folder.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("expertfleet")
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    issued.private_key_pem.write_to_path(str(folder / "tls.key"))
    (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    return folder
