#!/usr/bin/env bash
# grpcio 1.85.1, Python 3.11, 2026-12-01.
#
# A server ends a unary call with INVALID_ARGUMENT and a long message (grpc-message travels as metadata).
# Expected: the client sees INVALID_ARGUMENT, or, beyond some limit, always the same other status.
# Seen: between about 8 and 16 KiB, counted as it travels (percent-encoded, so a line end or a byte beyond ASCII is three),
#   chance decides: some calls see INVALID_ARGUMENT, the others RESOURCE_EXHAUSTED "Stream removed (received metadata ...".
#   Below it is always the former, above always the latter.
# Output (how many of 200 calls lost their status):
#    7000 letters: 0
#   12000 letters: 97      (differs from run to run, neither 0 nor 200)
#   17000 letters: 200
#    4000 line ends: 90    (differs from run to run)
# Exits 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1 2>/dev/null
cat > "$folder/calls.py" <<'PY'
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

CALLS = 200


class Service(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(grpc.StatusCode.INVALID_ARGUMENT, request.decode())
        )


server = grpc.server(ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Service(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
lost = {}
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    call = channel.unary_unary("/a.B/C")
    for name, message in (
        ("7000 letters", b"x" * 7000),
        ("12000 letters", b"x" * 12000),
        ("17000 letters", b"x" * 17000),
        ("4000 line ends", b"\n" * 4000),
    ):
        lost[name] = 0
        for _ in range(CALLS):
            try:
                call(message)
            except grpc.RpcError as error:
                lost[name] += error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        print(f"{name}: {lost[name]}")
server.stop(None)
by_chance = all(0 < lost[name] < CALLS for name in ("12000 letters", "4000 line ends"))
sys.exit(0 if lost["7000 letters"] == 0 and lost["17000 letters"] == CALLS and by_chance else 1)
PY
"$folder/venv/bin/python" "$folder/calls.py" 2>/dev/null
