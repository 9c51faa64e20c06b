import pytest
import torch

from expertfleet.kernels import native
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.expert_backend import make_backend
from expertfleet.kernels.row_rule import RuleCache


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_auto_says_what_it_chose(dtype: torch.dtype) -> None:
    backend = make_backend("auto", "cpu", dtype, 64, 32, 32)
    loaded = native.load()
    assert isinstance(loaded, native.Native), loaded
    short = str(dtype).removeprefix("torch.")
    chosen = f"cpu-native {short}, 64→32→64 group 32; any number of rows, {loaded.instruction_sets[0]}"
    assert backend.description == chosen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_auto_says_why_it_did_not_take_the_native_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: "it was not built")
    backend = make_backend("auto", "cpu", dtype, 64, 32, 32)
    assert backend.description.startswith(f"reference {str(dtype)[6:]}, 64→32→64 group 32; gate_up ")
    assert backend.description.endswith("about 100 times as long: it was not built")
    with pytest.raises(KernelError, match="backend: cpu-native cannot be used: it was not built"):
        make_backend("cpu-native", "cpu", dtype, 64, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "marlin"},
            "backend: 'marlin' is unknown, one of auto, cpu-native, reference, triton",
        ),
        ({"device": "cuda"}, "device: 'cuda' has no backend 'reference', only triton"),
        ({"name": "triton"}, "device: backend triton runs on 'cuda', not on 'cpu'"),
        ({"name": "triton", "device": "cuda", "dtype": torch.float32}, "dtype: backend triton takes bfloat16"),
        ({"name": "triton", "device": "cuda", "group_size": 16}, "group_size: triton cannot take 16, only 32"),
        ({"dtype": torch.float16}, "dtype: torch.float16 is not served"),
        ({"hidden": 80}, "hidden: 80 is not a multiple of the group size, 32"),
        ({"width": 48}, "width: 48 is not a multiple of the group size, 32"),
        ({"width": 0}, "width: 0 is not a multiple"),
        ({"name": "cpu-native", "group_size": 16}, "group_size: cpu-native cannot take 16, only multiples of 32"),
        ({"name": "cpu-native", "instruction_set": "mmx"}, "instruction_set: 'mmx' is not there, this processor has "),
        ({"group_size": 0}, "hidden: 64 is not a multiple of the group size, 0"),
    ],
)
def test_what_cannot_be_served_is_named(change: dict[str, object], message: str) -> None:
    arguments = {"name": "reference", "device": "cpu", "dtype": torch.bfloat16}
    arguments |= {"hidden": 64, "width": 32, "group_size": 32}
    with pytest.raises(KernelError, match=message):
        make_backend(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_triton_without_a_gpu_is_refused() -> None:
    with pytest.raises(KernelError, match=r"device: 'cuda' is wanted, but torch .* sees no CUDA device here"):
        make_backend("triton", "cuda", torch.bfloat16, 64, 32, 32)


def test_rules_are_shared_through_the_book() -> None:
    book = RuleCache()
    first = make_backend("reference", "cpu", torch.bfloat16, 64, 32, 32, rules=book)
    found = book.described()
    assert len(found) == 2
    second = make_backend("reference", "cpu", torch.bfloat16, 64, 32, 32, rules=book)
    assert book.described() == found
    assert first.description == second.description
