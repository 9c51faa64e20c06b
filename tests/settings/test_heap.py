"""Blocks as large as answers are touched anew without a page fault, once they were used."""

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource
from expertfleet.settings.heap import keep_large_blocks

keep_large_blocks()
for _ in range(3):
    bytearray({size}).upper()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray({size}).upper()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives free blocks back")
def test_large_blocks_stay_in_the_heap() -> None:
    code = _FAULTS.format(size=24 << 20)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 20, "one for each block at most"
