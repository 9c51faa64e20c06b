"""What is asked of a network is measured before it is used, and the floor is plain arithmetic."""

import os
import shutil

import bench_network
import pytest

from expertfleet.benchmarks.networks.network import networked
from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.checkpoint.tiny_config import KIMI_K2_THINKING, config_document

K2 = ModelConfig.from_dict(config_document(KIMI_K2_THINKING))


def test_the_floor_is_what_comes_back_over_the_link() -> None:
    result_bytes = 60 * 8 * 7168 * 2
    assert bench_network.carried(K2, 4, 10, 0, 1) == pytest.approx(10e9 / 8 / (result_bytes * 3 / 4))
    assert bench_network.carried(K2, 4, 0, 0.5, 1) == pytest.approx(1 / (60 * 0.5e-3))
    assert bench_network.carried(K2, 4, 0, 0.5, 16) == pytest.approx(16 / (60 * 0.5e-3))
    assert bench_network.carried(K2, 4, 0, 0, 1) == float("inf")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip")
def test_a_network_tells_what_it_comes_to() -> None:
    with networked(2) as network:
        assert not bench_network.lay(network, 2, 1000, 0, 0).is_made(1000, 0)
        assert bench_network.lay(network, 2, 0, 100, 1).is_made(0, 100)
        again = bench_network.lay(network, 2, 0, 0, 0)
        assert again.round_trip_ms < 50
        assert not again.is_made(0, 100)
