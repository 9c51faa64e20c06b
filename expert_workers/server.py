"""One expert shard as a running server: composes store, pool, runtime and handlers, and keeps the seat.

Knows nothing of Ray. ``start`` returns when the port is bound; a loader thread then takes the seat, runs the numerics
self-test, loads what it is told to hold, reports ready, and from then on loads and gives back experts as orders change. A shard that
shall end first waits until others hold what it holds, as long as it may.
"""

import logging
import socket
import threading
import time
from functools import partial

import torch

from ..checkpoint.tensors import Checkpoint
from ..kernels import native
from ..kernels.grouped_gemm import ExpertBackend
from ..kernels.numerics import expert_self_test
from ..membership import security
from ..membership.channel import listen
from ..membership.ending import Ending
from ..membership.epoch import ExpertSet
from ..membership.registration import Registration
from ..proto.codec import DTYPE_NAMES, Hello
from ..proto.errors import FleetError
from ..proto.generated import expert_pb2_grpc, membership_pb2
from ..transport.io_thread import IoThread
from ..transport.lane import server_options, stream_handler
from ..transport.local_lane import LocalServer
from ..transport.pair_group import PairSettings
from ..transport.reactor import Reactor
from ..transport.tcp_lane import TcpServer
from .config import ExpertConfig, parse_experts
from .device_memory import available_on
from .expert_store import ExpertStore
from .fast_path import FastPath
from .fetch_headers import ask_heads
from .handler import ControlService, LaneHandler, LocalLaneServer, TcpLaneServer
from .latest_assignment import LatestAssignment
from .memory import num_experts_in
from .numa import keep_to
from .peer_export import ExpertExporter
from .peers import Peers
from .pool import Pool
from .runtime import Runtime
from .sources import ExpertSources, NoSourceError

logger = logging.getLogger(__name__)
_RETRY_S = 5.0
_ADMITTED_S = 0.05
_POLL_S = 0.2


class ExpertServer:
    """Construction checks the configuration against the checkpoint; nothing runs before ``start``.

    Where files of the checkpoint are missing, construction waits for the controller to say what is in them.
    """

    def __init__(self, config: ExpertConfig, offer: str = "") -> None:
        """``offer``: of the node that this was started for."""
        self.config, self._offer = config, offer
        security.secure(config.wire)
        self.checkpoint = _open_checkpoint(config)
        model = self.checkpoint.config
        if config.memory_gib is not None:
            num_experts_in(config.memory_gib, model.expert_bytes)
        self.sources = ExpertSources(self.checkpoint, self._find_peers())
        self.store = ExpertStore(self.checkpoint, config.dtype, self.sources)
        self.giver = ExpertExporter(self.store, self.sources)
        self.reactor = Reactor(config.spin_us / 1e6)
        self.pool = Pool(config.max_queued_frames, self.reactor.wake)
        self.runtime = Runtime(self.reactor, self.pool, self.store.layers, config.threads, config.slice_ms)
        self._pair = PairSettings(config.pair_transport, config.pair_min_bytes, config.device)
        self._pair.check()
        self.address = ""
        self.numerics = ""
        self.backend: ExpertBackend | None = None
        self._assignment = LatestAssignment()
        self._relieved = threading.Event()  # nobody needs this shard any more
        self._alone = ExpertSet.from_pairs(
            [(layer, e) for layer in model.moe_layers for e in parse_experts(config.experts, model.num_experts)],
            model.num_layers,
            model.num_experts,
        )
        self._ending = Ending(self._drain, self._shut_down)

    def start(self) -> None:
        """Binds the port and starts loading in the background. Raises OSError when the port is taken, ValueError for cpus."""
        if processors := self.config.processors:
            logger.info("%s keeps to %s", self.config.seat, keep_to(processors))
            if isinstance(library := native.load(), native.Native):
                library.pin(processors)
        self._io = IoThread("expert-io")
        config = self.config
        self.registration = Registration(
            self._io, config.seat, config.controller, self._fill, self._on_order, config.node, self._offer
        )
        self._io.submit(self._bind())
        self._local = self._listen_locally()
        self.runtime.start()
        self._loader = threading.Thread(target=self._load, name="expert-loader", daemon=True)
        self._loader.start()

    @property
    def failure(self) -> str:
        """Why it cannot work; empty while it can."""
        return self.registration.failure

    def wait(self) -> None:
        """Blocks until the server has stopped."""
        self._ending.wait()

    def stop(self, drain_s: float | None = None) -> bool:
        """Serves until it is relieved, answers what is queued, then ends everything; whether all was answered in time.

        Not from the IO thread.
        """
        return self._ending.run(self.config.drain_s if drain_s is None else drain_s)

    def _drain(self, drain_s: float) -> bool:
        ends_at = time.monotonic() + drain_s
        self.registration.give_up()
        if self.registration.has_controller and self.registration.state == "ready" and not self._relieved.is_set():
            self.registration.enter("leaving")
            self._relieved.wait(drain_s)
        self.registration.enter("draining")
        self._assignment.close()
        self.sources.close()
        self.pool.close()
        return self.runtime.join(max(0.0, ends_at - time.monotonic()))

    def _shut_down(self) -> None:
        self._loader.join()
        if self._local is not None:
            self._local.close()
        if self._tcp is not None:
            self._tcp.close()
        lanes: list[LocalLaneServer | TcpLaneServer] = [*self.lanes.local_lanes, *self.lanes.tcp_lanes]
        for lane in lanes:
            lane.close()
        self._io.submit(self._close())
        self.registration.close()
        self._io.stop()

    async def _close(self) -> None:
        await self._server.stop(grace=1.0)
        self.giver.close()

    def _listen_locally(self) -> LocalServer | None:
        def connect(connected: socket.socket) -> None:
            self.lanes.local_lanes.add(LocalLaneServer(self.lanes, self.reactor, connected))

        try:
            return LocalServer(self.reactor, int(self.address.rpartition(":")[2]), connect)
        except OSError as error:
            logger.warning("%s has no local lanes: %s", self.config.seat, error)
            return None

    def _listen_tcp(self) -> TcpServer | None:
        config = self.config
        if not config.tcp_lanes:
            return None
        secure = partial(security.socket_context, server_side=True)
        server = TcpServer(self.reactor, self._io, config.host, config.lane_port, self.lanes.connect, secure)
        self.lanes.tcp_port = server.port
        return server

    def _on_order(self, order: membership_pb2.Order) -> None:
        """On the IO thread."""
        if order.leave:
            self._relieved.set()
            threading.Thread(target=self.stop, name="leave", daemon=True).start()
        elif order.HasField("hold"):
            self._assignment.put(ExpertSet.from_proto(order.hold))

    def _load(self) -> None:
        torch.set_num_threads(self.config.threads)
        if not self.registration.has_controller:
            self._assignment.put(self._alone)
        try:
            self.registration.take(self.address, self.checkpoint.fingerprint, self.config.dtype, self._capacity())
            backend = self._test_backend()
            self.registration.enter("loading")
            self._obey(backend)
        except InterruptedError:
            return
        except (FleetError, RuntimeError, ValueError, OSError, MemoryError) as error:
            self.registration.enter("failed", str(error) or type(error).__name__)

    def _capacity(self) -> int:
        """How many experts fit into the memory that there is where they will lie, or may be taken."""
        return num_experts_in(
            self.config.memory_gib, self.checkpoint.config.expert_bytes, lambda: available_on(self.config.device)
        )

    def _obey(self, backend: ExpertBackend) -> None:
        """Order after order, until there will be no more. Raises what keeps the shard from being ready for the first time."""
        while (wanted := self._assignment.take()) is not None:
            while not self._carry_out(wanted, backend) and not self._assignment.wait_until_stale(_RETRY_S):
                pass

    def _carry_out(self, wanted: ExpertSet, backend: ExpertBackend) -> bool:
        """Whether that is over; what went wrong in a shard that serves is reported, and tried again."""
        try:
            if not self.store.apply_assignment(wanted, backend, self._give_back, self._assignment.is_stale):
                return True
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            what = str(error) or type(error).__name__
            if self.registration.state == "loading":
                self._begin_with_less(error, what)
            logger.exception("%s could not do as it was told, and serves what it holds", self.config.seat)
            self.registration.error = what
            return False
        self.registration.error = ""
        if self.registration.state == "loading":
            self.registration.enter("ready")
        else:
            self.registration.report_soon()
        return True

    def _begin_with_less(self, error: Exception, what: str) -> None:
        """A shard that lacks files serves what it could get: others may come who have the rest. Raises ``error`` in any other case."""
        if not (isinstance(error, NoSourceError) and self.checkpoint.is_partial):
            raise error
        if self.store.held.count:
            self.registration.enter("ready", what)

    def _find_peers(self) -> Peers | None:
        config, checkpoint = self.config, self.checkpoint
        if config.controller is None:
            return None
        return Peers(config.controller, config.seat, checkpoint.config, checkpoint.fingerprint)

    def _give_back(self, layer: int, experts: list[int]) -> None:
        """Waits for the runtime's thread, which may be computing with them."""
        time.sleep(_ADMITTED_S)  # a frame that was just let in reaches the queue meanwhile
        removed = self.runtime.remove(layer, experts)
        while not removed.wait(_POLL_S) and not self._ending.begun.is_set():
            pass

    def _test_backend(self) -> ExpertBackend:
        """The backend with the rules that keep its rows exact on this machine. Raises KernelError."""
        config, model = self.config, self.checkpoint.config
        backend, report = expert_self_test(
            config.backend,
            config.device,
            DTYPE_NAMES[config.dtype],
            model.hidden_size,
            model.moe_intermediate_size,
            model.group_size,
        )
        self.backend, self.numerics = backend, report.class_name
        logger.info("%s: %s, numerics %s", config.seat, backend.description, self.numerics)
        return backend

    async def _bind(self) -> None:
        config = self.config
        hello = Hello(
            config.seat, self.checkpoint.fingerprint, config.dtype, config.max_frame_bytes, pair=config.pair_transport
        )
        fast_path = FastPath(self.store.filter, self.runtime.at_once)
        self.lanes = LaneHandler(self.store, self.pool, self.reactor, hello, self._pair, fast_path)
        self._server = security.make_server(server_options(config.max_frame_bytes))
        self._server.add_generic_rpc_handlers((stream_handler(self.lanes.stream),))
        control = ControlService(self.store, self.giver, self.registration.report, self._ending.asked)
        expert_pb2_grpc.add_ExpertShardServicer_to_server(control, self._server)
        self._tcp = self._listen_tcp()
        self.address = await listen(self._server, config.host, config.port)

    def _fill(self, report: membership_pb2.WorkerReport) -> None:
        counters, store = self.runtime.counters, self.store
        report.numerics = self.numerics
        report.backend = self.backend.description if self.backend is not None else ""
        report.fingerprint = self.checkpoint.fingerprint
        report.held.CopyFrom(store.held.to_proto())
        report.bytes_loaded, report.bytes_total = store.bytes_loaded, store.bytes_total
        report.tokens = counters.routes
        report.epoch.CopyFrom(store.newest_epoch.to_proto())
        report.min_epoch.CopyFrom(store.min_epoch.to_proto())
        metrics = {
            "routes_total": counters.routes,
            "batches_total": counters.batches,
            "merged_frames_total": counters.merged_frames,
            "failed_routes_total": counters.failed_routes,
            "expired_frames_total": counters.expired_frames,
            "refused_frames_total": self.lanes.num_refused,
            "compute_seconds_total": counters.compute_s,
            "queued_frames": self.pool.num_queued(),
            "expert_loads_failed_total": self.sources.counters.failed,
            "experts_given_total": self.giver.num_given,
            "expert_bytes_held": sum(layer.bytes_held for layer in list(store.layers.values())),
        }
        expert_bytes = self.checkpoint.config.expert_bytes
        for source, num_loads in self.sources.counters.loads.items():
            metrics[f"expert_loads_{source}_total"] = num_loads
            metrics[f"expert_load_bytes_{source}_total"] = num_loads * expert_bytes
        for name, value in metrics.items():
            report.metrics[name] = float(value)


def _open_checkpoint(config: ExpertConfig) -> Checkpoint:
    ask = partial(ask_heads, config.controller) if config.controller is not None else None
    try:
        return Checkpoint.open(config.model, config.shared_model, ask)
    except FleetError as error:
        raise OSError(f"{config.model}: {error}") from error
