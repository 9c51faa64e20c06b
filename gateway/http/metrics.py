"""The gateway's counters under vLLM's names, so that its dashboards work, and those of all workers beside them.

Knows nothing of requests' contents. Values of workers come from the controller's status when they are scraped.
"""

import re
import time
from collections import deque
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ...proto.generated import membership_pb2 as pb

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_FINE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 10)
_TOKENS = tuple(float(1 << power) for power in range(0, 19, 2))
_REMEMBERED = 32
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_:]")


class Metrics:
    def __init__(self, model_name: str) -> None:
        self.num_delivered = 0
        self.first_token_waits = deque[float](maxlen=_REMEMBERED)  # of the latest requests; ``first_token`` has all
        self.registry = CollectorRegistry()
        self.workers = _WorkerMetrics()
        self.registry.register(self.workers)
        label, own = ("model_name",), self.registry
        self.running = Gauge("vllm:num_requests_running", "Requests that got a first token.", label, registry=own)
        self.waiting = Gauge("vllm:num_requests_waiting", "Requests without a token yet.", label, registry=own)
        self.first_token = Histogram(
            "vllm:time_to_first_token_seconds", "From request to first token.", label, buckets=_SECONDS, registry=own
        )
        self.between_tokens = Histogram(
            "vllm:inter_token_latency_seconds", "Between tokens.", label, buckets=_FINE_SECONDS, registry=own
        )
        self.whole_request = Histogram(
            "vllm:e2e_request_latency_seconds", "From request to end.", label, buckets=_SECONDS, registry=own
        )
        self.request_prompt = Histogram(
            "vllm:request_prompt_tokens", "Prompt tokens a request.", label, buckets=_TOKENS, registry=own
        )
        self.request_generation = Histogram(
            "vllm:request_generation_tokens", "Generated tokens a request.", label, buckets=_TOKENS, registry=own
        )
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Prompt tokens.", label, registry=own)
        self.generation_tokens = Counter("vllm:generation_tokens", "Generated tokens.", label, registry=own)
        self.success = Counter(
            "vllm:request_success", "Answers by how they ended.", (*label, "finished_reason"), registry=own
        )
        self.inexact = Counter(
            "expertfleet_inexact_continuations", "Answers that went on in another numerics class.", label, registry=own
        )
        self.invalid_calls = Counter(
            "expertfleet_invalid_tool_calls", "Calls that name no tool; they became content.", label, registry=own
        )
        self.http = Counter("http_requests", "HTTP requests.", ("method", "handler", "status"), registry=own)
        for metric in (self.running, self.waiting, self.inexact, self.invalid_calls):
            metric.labels(model_name)

    def watch(self, model_name: str, num_prompt_tokens: int) -> "Watch":
        return Watch(self, model_name, num_prompt_tokens)

    def text(self, status: pb.FleetStatus, *, is_current: bool) -> bytes:
        """What is said of the fleet as a whole is left out where the controller is away: whoever acts on it had better wait."""
        self.workers.latest = list(status.workers)
        self.workers.of_fleet = _of_fleet(status) if is_current else {}
        return generate_latest(self.registry)


class Watch:
    """One request from start to end."""

    def __init__(self, metrics: Metrics, model_name: str, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._name = model_name
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0
        self._started = 0.0
        self._last: dict[int, float] = {}

    def start(self) -> None:
        self._started = time.monotonic()
        self._metrics.waiting.labels(self._name).inc()
        self._metrics.prompt_tokens.labels(self._name).inc(self._num_prompt_tokens)
        self._metrics.request_prompt.labels(self._name).observe(self._num_prompt_tokens)

    def tokens(self, index: int, num_tokens: int) -> None:
        now = time.monotonic()
        if not self._last:
            self._metrics.first_token.labels(self._name).observe(now - self._started)
            self._metrics.first_token_waits.append(now - self._started)
            self._metrics.waiting.labels(self._name).dec()
            self._metrics.running.labels(self._name).inc()
        elif index in self._last:
            for _ in range(num_tokens):
                self._metrics.between_tokens.labels(self._name).observe((now - self._last[index]) / num_tokens)
        self._last[index] = now
        self._num_tokens += num_tokens
        self._metrics.num_delivered += num_tokens
        self._metrics.generation_tokens.labels(self._name).inc(num_tokens)

    def inexact_continuation(self) -> None:
        self._metrics.inexact.labels(self._name).inc()

    def invalid_calls(self, num_calls: int) -> None:
        self._metrics.invalid_calls.labels(self._name).inc(num_calls)

    def end(self, reasons: Sequence[str]) -> None:
        gauge = self._metrics.running if self._last else self._metrics.waiting
        gauge.labels(self._name).dec()
        self._metrics.whole_request.labels(self._name).observe(time.monotonic() - self._started)
        self._metrics.request_generation.labels(self._name).observe(self._num_tokens)
        for reason in reasons:
            self._metrics.success.labels(self._name, reason).inc()


class _WorkerMetrics(Collector):
    """What each worker reported last, as gauges with its seat and role, and what is known of the fleet as a whole."""

    def __init__(self) -> None:
        self.latest: Sequence[pb.WorkerStatus] = ()
        self.of_fleet: dict[str, tuple[str, float]] = {}  # name: what it is, and its value

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily] = {
            name: GaugeMetricFamily(name, what, value=value) for name, (what, value) in self.of_fleet.items()
        }
        for worker in self.latest:
            values = dict(worker.report.metrics) | {"up": float(worker.state == "ready")}
            values |= {"bytes_loaded": worker.report.bytes_loaded, "tokens": worker.report.tokens}
            for name, value in values.items():
                full = "expertfleet_" + _NOT_A_NAME.sub("_", name).removeprefix("expertfleet_")
                family = families.setdefault(
                    full, GaugeMetricFamily(full, f"As {name} is reported.", labels=("seat", "role"))
                )
                family.add_metric((worker.seat, worker.role), value)
        return families.values()


def _of_fleet(status: pb.FleetStatus) -> dict[str, tuple[str, float]]:
    found = {
        "expertfleet_expert_coverage": (
            "Share of the experts that would survive the loss of any one node.", status.coverage
        ),
        "expertfleet_expert_replicas": ("Copies of each expert that are wanted.", status.replicas),
    }  # fmt: skip
    if status.wanted_expert_shards:  # 0: not known
        found["expertfleet_wanted_expert_shards"] = ("Of all groups, for the work.", status.wanted_expert_shards)
    return found
