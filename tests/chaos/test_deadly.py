"""The module that makes one request deadly, in processes of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEADLY = Path(__file__).parent / "harness" / "deadly"
PROGRAM = """
import sys
from expertfleet.attention_workers.sequence import SamplingParams, Sequence
told = []
one = Sequence("r", [1, 2], 2, 50, SamplingParams(seed=int(sys.argv[1])), told.append)
for number in range(20):
    one.tokens.append(number)
    one.publish(([], ""))
print(len(told))
"""


@pytest.mark.parametrize(("seed", "armed", "status"), [(7, "7", -signal.SIGKILL), (8, "7", 0), (7, "", 0)])
def test_only_the_one_seed_kills_and_only_where_it_is_named(seed: int, armed: str, status: int) -> None:
    environ = os.environ | {"PYTHONPATH": str(DEADLY)} | ({"CHAOS_DEADLY_SEED": armed} if armed else {})
    command = [sys.executable, "-c", PROGRAM, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == status, done.stderr
    assert done.stdout.strip() == ("" if status else "20")
