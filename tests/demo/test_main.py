import re
import subprocess
import sys
import time

import pytest


@pytest.mark.slow
def test_the_demonstration_answers_right_and_ends_well_and_soon() -> None:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "expertfleet.demo"], capture_output=True, text=True, timeout=150, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "left behind: nothing" in ended.stdout
    assert ended.stdout.count("right;") == 2
    assert 'calls: get_weather({"location": "Paris"})' in ended.stdout
    assert "9.9 is bigger than 9.11" in ended.stdout
    assert len(re.findall(r"[\d.]+ tokens/s", ended.stdout)) == 2
    assert all(seat in ended.stdout for seat in ("attention-0", "expert-0", "expert-1", "expert-2", "gateway-0"))
    assert time.monotonic() - began < 90
