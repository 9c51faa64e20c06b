import re
import time

import pytest
import torch

from expertfleet.kernels import numerics
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.grouped_gemm import grouped_gemm
from expertfleet.kernels.numerics import AttentionShapes, attention_self_test, expert_self_test
from expertfleet.kernels.row_rule import RowRule

SHAPES = AttentionShapes(
    linears=((96, 256), (80, 256), (192, 96), (256, 64), (128, 256), (500, 256)),
    gates=((64, 256),),
    num_heads=4,
    nope_width=16,
    value_width=16,
    num_latent=64,
    num_rope=16,
    norm_widths=(256, 96, 64),
)
DTYPES = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["cpu-native", "reference"])
def test_an_expert_s_class_is_the_same_for_every_start(threads: int, backend: str, dtype: torch.dtype) -> None:
    made, report = expert_self_test(backend, "cpu", dtype, 128, 64, 32)
    assert made.name == backend
    machine = "" if backend == "cpu-native" else r"\w+-"
    assert re.fullmatch(rf"{backend}-v\d+-{machine}{str(dtype)[6:]}-[0-9a-f]{{8}}", report.class_name)
    assert expert_self_test(backend, "cpu", dtype, 128, 64, 32)[1].class_name == report.class_name


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_s_report_names_its_rules(dtype: torch.dtype) -> None:
    first, second = attention_self_test(SHAPES, dtype), attention_self_test(SHAPES, dtype)
    assert first.class_name == second.class_name
    short = str(dtype)[6:]
    threads = torch.get_num_threads()
    assert f"linear 96x256 {short}, {threads} threads" in first.details
    assert f"linear 64x256 float32, {threads} threads" in first.details
    assert any(purpose.startswith("attention 64+16") for purpose in first.details)


def test_tiny_shapes_take_less_than_a_second_of_processor_time() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    attention_self_test(SHAPES, torch.bfloat16)
    expert_self_test("auto", "cpu", torch.bfloat16, 128, 64, 32)
    took = time.process_time() - start
    torch.set_num_threads(before)
    assert took < 1.0


def test_other_arithmetic_is_another_class(monkeypatch: pytest.MonkeyPatch) -> None:
    _, before = expert_self_test("reference", "cpu", torch.float32, 128, 64, 32)
    honest = grouped_gemm

    def off_by_one_bit(*arguments: object) -> torch.Tensor:
        return honest(*arguments) * (1 + 2.0**-22)  # type: ignore[arg-type]

    monkeypatch.setattr(numerics, "grouped_gemm", off_by_one_bit)
    _, after = expert_self_test("reference", "cpu", torch.float32, 128, 64, 32)
    assert before.class_name != after.class_name


def test_rows_that_depend_on_their_batch_are_an_error_with_the_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = grouped_gemm

    def batch_dependent(x: torch.Tensor, *rest: object) -> torch.Tensor:
        result = honest(x, *rest)  # type: ignore[arg-type]
        return result * (1 + 2.0**-7) if len(x) >= 33 else result

    monkeypatch.setattr(numerics, "grouped_gemm", batch_dependent)
    with pytest.raises(KernelError, match=r"grouped_gemm: the last 6 of 33 rows and the same alone differ in \d+ of"):
        expert_self_test("reference", "cpu", torch.bfloat16, 128, 64, 32)


def test_an_untested_row_count_in_attention_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one and many query rows mixed freely, as a plain implementation would, the proof fails in float32."""
    monkeypatch.setattr(numerics, "attention_rule", lambda *_: RowRule("flash", (1, 256)))
    shapes = AttentionShapes(((64, 64),), (), 1, 16, 16, 64, 16, (64,))
    with pytest.raises(KernelError, match="mla_attend"):
        attention_self_test(shapes, torch.float32)
