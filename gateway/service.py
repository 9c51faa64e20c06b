"""What the routes call: one request from its bytes to its response.

Knows nothing of routes. 1. Read and check; 2. make a job of it; 3. run it; 4. answer whole or as a stream.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..proto.address import is_every_address, join_address
from ..proto.errors import shown
from .access.keys import ApiKeys
from .config import GatewayConfig
from .engine.backend import Backend
from .engine.controller_client import ControllerClient
from .engine.drain import Drain
from .engine.prepared_request import PreparedRequest
from .engine.running_request import RunningRequest
from .events.answer import Answer, Event
from .events.served_model import Model
from .http.connection import EventStream, unless_gone
from .http.errors import bad_value
from .http.json_body import read_object
from .http.metrics import Metrics
from .http.retry_after import RetryAfter
from .idle_gc import Idle
from .openai.chat import chat_job
from .openai.chat_format import ChatFormat
from .openai.completion_format import CompletionFormat
from .openai.completions import completion_job
from .openai.fields import IGNORED_HEADER, listed
from .openai.schemas import AnyRequest, ChatRequest, CompletionRequest, parse
from .openai.sse_stream import EventFrames

INEXACT_HEADER = "x-expertfleet-inexact-continuations"
_DRAWN_SEATS = 10**8

AnyFormat = ChatFormat | CompletionFormat
_Asked = TypeVar("_Asked", ChatRequest, CompletionRequest)


class Service:
    """Everything the gateway holds; belongs to one event loop."""

    def __init__(self, config: GatewayConfig, model: Model) -> None:
        self.config = config
        self._model = model
        self.metrics = Metrics(model.names[0])
        self.retry_after = RetryAfter(config.retry_after_s, self.metrics.first_token_waits)
        self.backend = Backend()
        seat = config.seat or f"gateway-{random.SystemRandom().randrange(_DRAWN_SEATS)}"
        self.fleet = ControllerClient(config.controller, seat, self.backend, lambda: self.metrics.num_delivered)
        self.drain = Drain()
        self.idle = Idle()
        self.keys = ApiKeys(config.api_key, config.api_key_file)
        self.started_at = int(time.time())
        # Host and port of both sides, once they are bound.
        self.address = ("", 0)
        self.admin_address = ("", 0)

    @property
    def model(self) -> Model:
        """With the context that its workers have now."""
        return self._model.at_most(self.backend.max_model_len)

    @property
    def url(self) -> str:
        return url_of(*self.address)

    def admin_url(self, asked_host: str | None = None) -> str:
        """``asked_host``: under which name the client knows this machine, for a port open on every address."""
        host, port = self.admin_address
        return url_of(asked_host if asked_host and is_every_address(host) else host, port)

    async def chat(self, http: Request) -> Response:
        request, ignored = parse(ChatRequest, await self._read(http))
        job = await self._job(http, request, lambda identity: chat_job(request, self.model, identity, ignored))
        answers = job.new_answers()
        return await self._respond(http, job, answers, ChatFormat(job, answers, self.model))

    async def complete(self, http: Request) -> Response:
        request, ignored = parse(CompletionRequest, await self._read(http))
        limit = self.config.max_choices
        job = await self._job(
            http,
            request,
            lambda identity: completion_job(request, self.model, identity, ignored, max_choices=limit),
        )
        answers = job.new_answers()
        return await self._respond(http, job, answers, CompletionFormat(job, answers, self.model))

    def check_model(self, name: str) -> None:
        if name not in self.model.names:
            served = ", ".join(self.model.names)
            message = f"{shown(name, 200)} does not exist here; served: {served}"
            raise bad_value("model", message, code="model_not_found")

    async def _read(self, http: Request) -> dict[str, Any]:
        return await read_object(http, self.config.max_body_mib << 20)

    async def _job(
        self, http: Request, request: AnyRequest, make: Callable[[str], PreparedRequest[_Asked]]
    ) -> PreparedRequest[_Asked]:
        """Long prompts take long to encode, so that is done beside the event loop."""
        self.check_model(request.model)
        if request.request_id is not None and not http.state.has_own_id:
            http.state.request_id = request.request_id
        return await asyncio.to_thread(make, http.state.request_id)

    async def _respond(
        self, http: Request, job: PreparedRequest[AnyRequest], answers: list[Answer], form: AnyFormat
    ) -> Response:
        headers = {IGNORED_HEADER: listed(job.ignored)} if job.ignored else {}
        async with AsyncExitStack() as stack:
            run = RunningRequest(job, answers, self.backend, self.metrics, self.config.failover)
            stack.enter_context(self.drain.track(run))
            stack.enter_context(self.idle.busy())
            await stack.enter_async_context(run)
            if not job.request.stream:
                events = await unless_gone(http.receive, _collect(run, len(answers)))
                if run.num_inexact:
                    headers[INEXACT_HEADER] = str(run.num_inexact)
                return JSONResponse(form.whole(events), headers=headers)
            frames = EventFrames(run, form, self.config.keep_alive_s)
            stack.push_async_callback(frames.close)
            await unless_gone(http.receive, frames.begin(self.config.first_chunk_s))
            return EventStream(frames.frames(), stack.pop_all(), headers)


def url_of(host: str, port: int) -> str:
    return f"http://{join_address(host, port)}"


async def _collect(run: RunningRequest, num_answers: int) -> list[list[Event]]:
    events: list[list[Event]] = [[] for _ in range(num_answers)]
    async for index, event in run.events():
        events[index].append(event)
    return events
