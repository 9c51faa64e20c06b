"""One expert shard as a running server: composes holdings, pool, runtime and handlers, and keeps the seat.

Knows nothing of Ray. ``start`` returns when the port is bound; a loader thread then takes the seat, runs the numerics
self-test, loads what it is assigned, and reports ready.
"""

import logging
import socket
import threading

import torch

from ..checkpoint.tensors import Checkpoint
from ..kernels import native
from ..kernels.grouped_gemm import Backend
from ..kernels.numerics import expert_self_test
from ..membership import wire
from ..membership.channel import listen
from ..membership.ending import Ending
from ..membership.epoch import ExpertSet
from ..membership.tenancy import Tenancy
from ..proto.codec import DTYPE_NAMES, Hello
from ..proto.errors import FleetError
from ..proto.generated import expert_pb2_grpc, membership_pb2
from ..proto.io_thread import IoThread
from ..proto.lane import server_options, stream_handler
from ..proto.local_lane import LocalServer
from ..proto.reactor import Reactor
from .config import ExpertConfig, parse_experts
from .handler import ControlService, LaneHandler, LocalLane
from .holdings import Holdings
from .numa import keep_to
from .pool import Pool
from .runtime import Runtime

logger = logging.getLogger(__name__)


class ExpertServer:
    """Construction checks the configuration against the checkpoint; nothing runs before ``start``."""

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config
        self.checkpoint = Checkpoint.open(config.model)
        model = self.checkpoint.config
        self.holdings = Holdings(self.checkpoint, config.dtype)
        self.reactor = Reactor()
        self.pool = Pool(config.max_queued_frames, self.reactor.wake)
        self.runtime = Runtime(self.reactor, self.pool, self.holdings.layers, config.threads, config.slice_ms)
        self.address = ""
        self.numerics = ""
        self.backend: Backend | None = None
        self._alone = ExpertSet.from_pairs(
            [(layer, e) for layer in model.moe_layers for e in parse_experts(config.experts, model.num_experts)],
            model.num_layers,
            model.num_experts,
        )
        self._ending = Ending(self._drain, self._shut_down)

    def start(self) -> None:
        """Binds the port and starts loading in the background. Raises OSError when the port is taken, ValueError for cpus."""
        wire.secure(self.config.wire)
        if processors := self.config.processors:
            logger.info("%s keeps to %s", self.config.seat, keep_to(processors))
            if isinstance(library := native.load(), native.Native):
                library.pin(processors)
        self._io = IoThread("expert-io")
        self.tenancy = Tenancy(self._io, self.config.seat, self.config.controller, self._fill, self.config.node)
        self._io.submit(self._bind())
        self._local = self._listen_locally()
        self.runtime.start()
        self._loader = threading.Thread(target=self._load, name="expert-loader", daemon=True)
        self._loader.start()

    def wait(self) -> None:
        """Blocks until the server has stopped."""
        self._ending.wait()

    def stop(self, drain_s: float | None = None) -> bool:
        """Answers what is queued, then ends everything; whether all was answered in time. Not from the IO thread."""
        return self._ending.run(self.config.drain_s if drain_s is None else drain_s)

    def _drain(self, drain_s: float) -> bool:
        self.tenancy.give_up()
        self.tenancy.enter("draining")
        self.pool.close()
        return self.runtime.join(drain_s)

    def _shut_down(self) -> None:
        self._loader.join()
        if self._local is not None:
            self._local.close()
        for lane in list(self.lanes.local_lanes):
            lane.close()
        self._io.submit(self._close())
        self.tenancy.close()
        self._io.stop()

    async def _close(self) -> None:
        await self._server.stop(grace=1.0)

    def _listen_locally(self) -> LocalServer | None:
        def connect(connected: socket.socket) -> None:
            self.lanes.local_lanes.add(LocalLane(self.lanes, self.reactor, connected))

        try:
            return LocalServer(self.reactor, int(self.address.rpartition(":")[2]), connect)
        except OSError as error:
            logger.warning("%s has no local lanes: %s", self.config.seat, error)
            return None

    def _load(self) -> None:
        torch.set_num_threads(self.config.threads)
        try:
            reply = self.tenancy.take(self.address, self.checkpoint.fingerprint, self.config.dtype)
            backend = self._test_backend()
            self.tenancy.enter("loading")
            self.holdings.load(self._assignment(reply), backend, self._ending.begun.is_set)
        except InterruptedError:
            return
        except (FleetError, RuntimeError, ValueError, OSError, MemoryError) as error:
            self.tenancy.enter("failed", str(error) or type(error).__name__)
            return
        if not self._ending.begun.is_set():
            self.tenancy.enter("ready")

    def _test_backend(self) -> Backend:
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

    def _assignment(self, reply: membership_pb2.RegisterReply | None) -> ExpertSet:
        return self._alone if reply is None else ExpertSet.from_proto(reply.assignment)

    async def _bind(self) -> None:
        config = self.config
        hello = Hello(config.seat, self.checkpoint.fingerprint, config.dtype, config.max_frame_bytes)
        self.lanes = LaneHandler(self.holdings, self.pool, hello)
        self._server = wire.make_server(server_options(config.max_frame_bytes))
        self._server.add_generic_rpc_handlers((stream_handler(self.lanes.stream),))
        control = ControlService(self.holdings, self.tenancy.report, self._ending.asked)
        expert_pb2_grpc.add_ExpertShardServicer_to_server(control, self._server)
        self.address = await listen(self._server, config.host, config.port)

    def _fill(self, report: membership_pb2.WorkerReport) -> None:
        counters, holdings = self.runtime.counters, self.holdings
        report.numerics = self.numerics
        report.backend = self.backend.description if self.backend is not None else ""
        report.fingerprint = self.checkpoint.fingerprint
        report.held.CopyFrom(holdings.held.to_proto())
        report.bytes_loaded, report.bytes_total = holdings.bytes_loaded, holdings.bytes_total
        report.tokens = counters.routes
        report.epoch.CopyFrom(holdings.newest_epoch.to_proto())
        report.min_epoch.CopyFrom(holdings.min_epoch.to_proto())
        metrics = {
            "routes_total": counters.routes,
            "batches_total": counters.batches,
            "merged_frames_total": counters.merged_frames,
            "failed_routes_total": counters.failed_routes,
            "expired_frames_total": counters.expired_frames,
            "refused_frames_total": self.lanes.num_refused,
            "compute_seconds_total": counters.compute_s,
            "queued_frames": self.pool.num_queued(),
            "expert_bytes_held": sum(layer.bytes_held for layer in list(holdings.layers.values())),
        }
        for name, value in metrics.items():
            report.metrics[name] = float(value)
