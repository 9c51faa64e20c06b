"""Experts are named as ids and ranges, devices by torch's names; what is neither is refused."""

from pathlib import Path

import pytest

from expertfleet.expert_workers.config import ExpertConfig, parse_experts


def test_ids_and_ranges_are_one_sorted_set() -> None:
    assert parse_experts("3-5, 1,4", 8) == (1, 3, 4, 5)
    assert parse_experts("all", 3) == (0, 1, 2)


@pytest.mark.parametrize("text", ["5-2", "1,5-2", "3-", "-3", "", "1,,2", "x", "1-2-3", "8", "0-99999999999999"])
def test_what_names_no_expert_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="experts: "):
        parse_experts(text, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "gpu"}, "device: 'gpu' is neither cpu nor cuda nor cuda:INDEX"),
        ({"device": "cuda:x"}, "device: 'cuda:x' is neither"),
        ({"backend": "triton"}, "backend: triton computes on a GPU; give --device cuda"),
        (
            {"device": "cuda:1", "backend": "reference"},
            "backend: reference computes on the CPU, not on device 'cuda:1'",
        ),
    ],
)
def test_a_backend_computes_on_its_own_device(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertConfig(Path("model"), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pair_min_kib": -1}, "pair_min_kib: -1 is not within 0 to 1048576"),
    ],
)
def test_a_pair_needs_what_its_transport_needs(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertConfig(Path("model"), **given)  # type: ignore[arg-type]


def test_a_pair_is_refused_where_the_lanes_are_encrypted(tls_dir: Path) -> None:
    with pytest.raises(ValueError, match="pair_transport: nccl does not encrypt; it cannot go with tls_dir"):
        ExpertConfig(Path("model"), pair_transport="nccl", tls_dir=tls_dir)


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_a_gpu_is_named_as_torch_names_it(device: str, backend: str) -> None:
    assert ExpertConfig(Path("model"), device=device, backend=backend).device == device  # type: ignore[arg-type]
