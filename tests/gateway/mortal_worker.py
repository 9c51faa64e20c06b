"""An attention worker as a process that can really die: ``mortal_worker.py SEAT FATE NUM_TOKENS``, prints its address.

FATE ``dies``: kills itself after that many tokens of a sequence; ``refuses``: before it has taken it; ``drains``: sends it away
after that many.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import grpc

from expertfleet.proto.admission import ADMITTED
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import generate_pb2 as pb
from expertfleet.proto.generated import generate_pb2_grpc as rpc


class MortalWorker(rpc.AttentionWorkerServicer):
    def __init__(self, seat: str, fate: str, num_tokens: int) -> None:
        self._seat, self._fate, self._num_tokens = seat, fate, num_tokens

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateReply]:
        if self._fate == "refuses":
            os.kill(os.getpid(), signal.SIGKILL)
        await context.send_initial_metadata(((ADMITTED, self._seat),))
        for number in range(self._num_tokens):
            yield pb.GenerateReply(
                token_ids=[5 + number], seat="" if number else self._seat, numerics="" if number else "fake-1"
            )
        await asyncio.sleep(0.1)
        if self._fate == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        error = FleetError(Code.DRAINING, "the worker was stopped")
        await context.abort(error.status, error.details)


async def main(seat: str, fate: str, num_tokens: str) -> None:
    server = grpc.aio.server()
    rpc.add_AttentionWorkerServicer_to_server(MortalWorker(seat, fate, int(num_tokens)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
