"""One attention worker as a running server: composes model, cache, scheduler, engine, router and service.

Knows nothing of Ray. ``start`` returns when the port is bound; a loader thread then takes the seat, runs the numerics
self-test, loads the weights, and reports ready.
"""

import logging
import threading
import time

import torch

from ..checkpoint.tensors import Checkpoint
from ..membership import security
from ..membership.channel import SERVER_OPTIONS, listen
from ..membership.ending import Ending
from ..membership.registration import Registration
from ..membership.watch import EpochWatch
from ..proto.codec import DTYPE_NAMES, Hello
from ..proto.errors import FleetError
from ..proto.generated import generate_pb2_grpc, membership_pb2
from ..router.placement.expert_loads import ExpertLoads
from ..router.router import Router
from ..settings.heap import keep_large_blocks
from ..transport.io_thread import IoThread
from ..transport.pair_group import PairSettings
from .config import AttentionConfig
from .engine import Engine
from .kv_cache import PAGE_SIZE, LatentCache, PageAllocator
from .model import Batch, Model
from .prefill_budget import PrefillBudget
from .scheduler import Chunk, Scheduler
from .self_test import self_test
from .service import GenerateService, Limits
from .static_shards import describe_shards
from .weights import Loader

logger = logging.getLogger(__name__)

_GIB = 1 << 30
# Long beside one conversation's taste for some experts, short beside a day's.
_LOAD_HALF_LIFE_S = 300.0
_LOAD_EVERY_S = 5.0


class AttentionServer:
    """Construction checks the configuration against the checkpoint; nothing runs before ``start``."""

    def __init__(self, config: AttentionConfig, offer: str = "") -> None:
        """``offer``: of the node that this was started for."""
        self.config, self._offer = config, offer
        self.checkpoint = Checkpoint.open(config.model, config.shared_model)
        self.dtype = DTYPE_NAMES[config.dtype]
        model = self.checkpoint.config
        self.max_model_len = min(config.max_model_len or model.max_position_embeddings, model.max_position_embeddings)
        page_bytes = LatentCache.page_bytes(model.num_layers, model.latent_width, self.dtype)
        num_pages = cache_pages(config.cache_gib, page_bytes, self.max_model_len)
        self.pages = PageAllocator(num_pages)
        self.cache = LatentCache(model.num_layers, num_pages, model.latent_width, self.dtype)
        self.scheduler = Scheduler(
            self.pages, config.max_num_seqs, config.max_num_batched_tokens, self._numerics_generation
        )
        pace = PrefillBudget(config.step_target_ms / 1e3, config.max_num_batched_tokens)
        self.engine = Engine(
            self.scheduler, self._forward, pace, config.max_micro_batches, config.threads, config.spin_us / 1e6
        )
        self._pair = PairSettings(config.pair_transport, config.pair_min_bytes)
        self._pair.check()
        self.address = ""
        self.numerics = ""
        self._model: Model | None = None
        self._loader: Loader | None = None
        self._load_due_at = 0.0
        self._ending = Ending(self._drain, self._shut_down)

    def start(self) -> None:
        """Binds the port and starts loading in the background. Raises OSError when the port is taken."""
        config = self.config
        security.secure(config.wire)
        self._io = IoThread("attention-io")
        self.registration = Registration(
            self._io, config.seat, config.controller, self._fill, self._on_order, config.node, self._offer
        )
        hello = Hello(
            config.seat,
            self.checkpoint.fingerprint,
            config.dtype,
            config.max_frame_bytes,
            pair=config.pair_transport,
        )
        model = self.checkpoint.config
        self.router = Router(
            self._io,
            self.engine.reactor,
            hello,
            config.layer_deadline_s,
            config.lost_expert_wait_s,
            local_lanes=config.local_lanes,
            tcp_lanes=config.tcp_lanes,
            pair=self._pair,
            loads=ExpertLoads(model.num_layers, model.num_experts, _LOAD_HALF_LIFE_S),
        )
        self._io.submit(self._bind())
        self._loading = threading.Thread(target=self._load, name="attention-loader", daemon=True)
        self._loading.start()

    @property
    def failure(self) -> str:
        """Why it cannot work; empty while it can."""
        return self.registration.failure

    def wait(self) -> None:
        """Blocks until the server has stopped."""
        self._ending.wait()

    def stop(self, drain_s: float | None = None) -> bool:
        """Finishes running sequences, then ends everything; whether all finished in time. Not from the IO thread."""
        return self._ending.run(self.config.drain_s if drain_s is None else drain_s)

    def _drain(self, drain_s: float) -> bool:
        self.registration.give_up()
        self.service.draining = True
        self.registration.enter("draining")
        deadline = time.monotonic() + drain_s
        while self.service.num_open and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.service.num_open

    def _shut_down(self) -> None:
        self._loading.join()
        if self._model is not None:
            self.engine.stop()
        self._io.submit(self._server.stop(grace=1.0))
        self.router.close()
        self.registration.close()
        self._io.stop()

    def _on_order(self, order: membership_pb2.Order) -> None:
        """On the IO thread."""
        if order.leave:
            threading.Thread(target=self.stop, name="leave", daemon=True).start()

    def _load(self) -> None:
        config = self.config
        torch.set_num_threads(config.threads)
        try:
            self.registration.take(self.address, self.checkpoint.fingerprint, config.dtype)
            report = self_test(self.checkpoint.config, self.dtype)
            self.numerics = report.class_name
            logger.info("%s: numerics %s", config.seat, self.numerics)
            self.registration.enter("loading")
            self._loader = Loader(
                self.checkpoint, report.rules, self.dtype, self.max_model_len, self._ending.begun.is_set
            )
            self._model = self._loader.load()
        except InterruptedError:
            return
        except (FleetError, RuntimeError, ValueError, OSError, MemoryError) as error:
            self.registration.enter("failed", str(error) or type(error).__name__)
            return
        keep_large_blocks()  # not before: what loading frees is never needed again
        self.engine.start()
        self._io.post(self._follow)
        self.registration.enter("ready")

    async def _forward(self, chunks: list[Chunk]) -> torch.Tensor:
        assert self._model is not None
        return await self._model.forward(Batch.of(chunks, self.dtype), self.cache, self.router)

    def _numerics_generation(self) -> int | None:
        return self.router.routing_table.numerics_generation if self.config.prefix_caching else None

    def _sequence_numerics(self) -> str:
        """The class of a token's bits: this worker's and its shards'; empty while no shard is known."""
        plan = self.router.routing_table
        return f"{self.numerics}/{plan.numerics}" if plan.members and self._model is not None else ""

    async def _bind(self) -> None:
        config = self.config
        limits = Limits(self.checkpoint.config.vocab_size, self.max_model_len, config.max_open)
        self.service = GenerateService(
            config.seat, self.engine, limits, self._sequence_numerics, self.registration.report, self._ending.asked
        )
        self._server = security.make_server(SERVER_OPTIONS)
        generate_pb2_grpc.add_AttentionWorkerServicer_to_server(self.service, self._server)
        self.address = await listen(self._server, config.host, config.port)

    def _follow(self) -> None:
        """Starts following the controller's epochs, or takes the given shards as the only epoch there is."""
        if self.config.controller is not None:
            watch = EpochWatch(self.config.controller, self.config.seat)
            self._following = self._io.loop.create_task(watch.run(self.router.set_epoch))
        else:
            self._following = self._io.loop.create_task(self._ask_shards())

    async def _ask_shards(self) -> None:
        try:
            epoch = await describe_shards(self.config.shards, self.checkpoint, self.config.dtype)
        except FleetError as error:
            self.registration.enter("failed", str(error))
        else:
            self.router.set_epoch(epoch)

    def _fill(self, report: membership_pb2.WorkerReport) -> None:
        engine, router = self.engine.counters, self.router.counters
        report.numerics = self.numerics
        report.backend = f"cpu torch {torch.__version__}, {self.config.dtype}, {self.config.threads} threads"
        report.fingerprint = self.checkpoint.fingerprint
        report.epoch.CopyFrom(self.router.routing_table.epoch.to_proto())
        report.tokens = engine.tokens_generated
        report.quarantined.extend(self.router.quarantined)
        report.seconds_per_expert.update(self.router.seconds_per_expert())
        if self._loader is not None:
            report.bytes_loaded, report.bytes_total = self._loader.bytes_loaded, self._loader.bytes_total
        metrics = {
            "forward_steps_total": engine.steps,
            "forward_tokens_total": engine.tokens_computed,
            "forward_sequences_total": engine.sequences_stepped,
            "forward_sequences_max": engine.max_sequences_in_step,
            "generated_tokens_total": engine.tokens_generated,
            "failed_sequences_total": engine.failed_sequences,
            "refused_sequences_total": self.service.num_refused,
            "preemptions_total": self.scheduler.num_preemptions,
            "sequences_running": self.scheduler.num_running,
            "sequences_waiting": self.scheduler.num_waiting,
            "cache_pages_total": self.pages.num_pages,
            "cache_pages_free": self.pages.num_free,
            "cache_pages_evictable": self.pages.num_evictable,
            "prefix_cache_queries_total": self.scheduler.num_looked_up,
            "prefix_cache_hits_total": self.scheduler.num_reused,
            "max_model_len": self.max_model_len,
            "dispatches_total": router.dispatches,
            "dispatched_routes_total": router.routes,
            "dispatched_frames_total": router.frames,
            "retried_frames_total": router.retried_frames,
            "hedged_frames_total": router.hedged_frames,
            "failed_dispatches_total": router.failed_dispatches,
            "faulty_rows_total": router.faulty_rows,
            "quarantined_shards": len(self.router.quarantined),
            "dispatches_waiting_for_experts": self.router.num_waiting,
        }
        for name, value in metrics.items():
            report.metrics[name] = float(value)
        if (now := time.monotonic()) >= self._load_due_at and self.router.loads is not None:
            self._load_due_at = now + _LOAD_EVERY_S
            report.load = self.router.loads.snapshot(now).to_bytes()


def cache_pages(cache_gib: float | None, page_bytes: int, max_model_len: int) -> int:
    """Pages of the latent cache. Raises ValueError when one full-length sequence would not fit."""
    needed = PageAllocator.needed(max_model_len)
    if cache_gib is None:
        return max(needed, _GIB // page_bytes)
    num_pages = int(cache_gib * _GIB) // page_bytes
    if num_pages < needed:
        raise ValueError(
            f"cache_gib: {cache_gib:g} GiB holds {num_pages * PAGE_SIZE} positions, max_model_len is {max_model_len}; "
            f"give --cache-gib {needed * page_bytes / _GIB:.2f} or a smaller --max-model-len"
        )
    return num_pages
