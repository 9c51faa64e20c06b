"""The arithmetic of the extrapolation, term by term, with figures that can be checked by hand."""

import dataclasses

import pytest
import size_fleet
from size_fleet import Fleet, Machine, Measured, Step

from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.checkpoint.tiny_config import KIMI_K2_THINKING, config_document

K2 = ModelConfig.from_dict(config_document(KIMI_K2_THINKING))
PLAIN = Measured(
    share_int4=0.5, share_bf16=0.5, flops_int4=1e12, flops_bf16=1e12,
    router_s=1e-3, router_token_s=1e-4, router_shard_s=1e-5,
)  # fmt: skip
FLEET = Fleet(
    attention=Machine(400e9, 10, 5.0), expert=Machine(300e9, 10, 2.0), num_experts_on_gpu=0, gpu_usd_per_hour=3.0,
    bits_per_s=10e9, round_trip_s=1e-4, context=0, router_speed=1.0,
)  # fmt: skip


def test_what_is_read_for_a_token_is_the_model_without_its_experts() -> None:
    assert 2 * size_fleet.attention_params(K2) == pytest.approx(21.1e9, rel=0.005)
    assert K2.expert_bytes == 24_772_608


def test_attention_takes_as_long_as_it_reads_or_computes() -> None:
    params = size_fleet.attention_params(K2)
    assert size_fleet.attention_s(K2, FLEET, PLAIN, 1) == pytest.approx(2 * params / 200e9)
    assert size_fleet.attention_s(K2, FLEET, PLAIN, 500) == pytest.approx(500 * 2 * params / 10e12)
    with_cache = dataclasses.replace(FLEET, context=1000)
    more = size_fleet.attention_s(K2, with_cache, PLAIN, 2) - size_fleet.attention_s(K2, FLEET, PLAIN, 2)
    assert more == pytest.approx(2 * 1000 * 70_272 / 200e9), "2 caches of 1000 positions of 70,272 bytes"


def test_experts_take_as_long_as_the_busiest_node_reads_or_computes() -> None:
    alone = size_fleet.experts_s(K2, FLEET, PLAIN, 1, 1)
    assert alone == pytest.approx(60 * 8 * 24_772_608 / 150e9), "one node reads all 8"
    bound = dataclasses.replace(PLAIN, flops_int4=1e9)
    assert size_fleet.experts_s(K2, FLEET, bound, 1, 2) == pytest.approx(60 * 16 * 6 * 7168 * 2048 / 10e9)


def test_the_busiest_node_is_drawn_the_same_way_every_time() -> None:
    experts, routes = size_fleet.busiest(K2, 4, 0, 1)
    assert (experts, routes) == size_fleet.busiest(K2, 4, 0, 1)
    assert 2 < experts == routes < 5, "8 experts over 4 nodes"
    experts, routes = size_fleet.busiest(K2, 1, 0, 64)
    assert routes == 512
    assert experts == pytest.approx(384 * (1 - (1 - 8 / 384) ** 64), rel=0.02), "those that 64 tokens ask at all"
    assert size_fleet.busiest(K2, 4, 384, 8) == (0, 0), "all are on the GPU"


def test_the_router_pays_for_tokens_and_for_shards() -> None:
    assert size_fleet.router_s(K2, FLEET, PLAIN, 1, 1) == pytest.approx(60 * 1e-3)
    assert size_fleet.router_s(K2, FLEET, PLAIN, 4, 11) == pytest.approx(60 * (1e-3 + 10e-4 + 3e-5))
    assert size_fleet.router_s(K2, FLEET, PLAIN, 100, 1) == pytest.approx(60 * (1e-3 + 7e-5)), "8 routes, 8 shards"
    with_gpu = dataclasses.replace(FLEET, num_experts_on_gpu=1, router_speed=2.0)
    assert size_fleet.router_s(K2, with_gpu, PLAIN, 4, 11) == pytest.approx(30 * (1e-3 + 10e-4 + 4e-5))


def test_the_wire_carries_every_routes_result() -> None:
    assert size_fleet.wire_s(K2, FLEET, 1) == pytest.approx(60 * 1e-4 + 8 * 6_881_280 / 10e9)


def test_the_slower_of_compute_and_wire_decides() -> None:
    computes = Step(10, 0.1, 0.2, 0.3, 0.5, 36.0)
    assert computes.tokens_per_s == pytest.approx(10 / 0.6)
    assert computes.usd_per_million == pytest.approx(600.0)
    assert dataclasses.replace(computes, wire_s=2.0).tokens_per_s == pytest.approx(5.0)


def test_all_machines_are_paid_for() -> None:
    one = size_fleet.step(K2, FLEET, PLAIN, 4, 1)
    assert one.usd_per_hour == 13.0
    assert size_fleet.step(K2, dataclasses.replace(FLEET, num_experts_on_gpu=50), PLAIN, 4, 1).usd_per_hour == 16.0


def test_what_was_measured_is_read_from_the_results() -> None:
    measured = size_fleet.read_measured()
    assert measured.share_int4 == pytest.approx(20.2 / 21.0)
    assert measured.share_bf16 == pytest.approx(3.8 / 21.0 * 32 / 9)
    assert measured.flops_int4 == pytest.approx(0.2906e12 / 2)
    assert measured.flops_bf16 == pytest.approx(0.2163e12 / 2)
    assert measured.router_s == pytest.approx(128e-6)
    assert measured.router_token_s == pytest.approx((3708 - 128) / 63 * 1e-6)
    assert measured.router_shard_s == pytest.approx((342 - 128) / 3 * 1e-6)


def test_a_fleet_that_does_not_hold_the_model_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="--nodes 4: hold 368 of 384 experts of each layer"):
        size_fleet.main(["--nodes", "4", "--gpu-gib", "0"])
    size_fleet.main(["--nodes", "5", "--gpu-gib", "0", "--sequences", "1"])
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "|" not in line] == ["extrapolated, not measured"] * 2
    assert len(said[-1].split(" | ")) == 8
