import pytest
import torch

from expertfleet.kernels.mla import SPLIT, DecodePlan, attention_rule, mla_attend, mla_decode
from expertfleet.kernels.row_rule import RowRule, RuleCache, bits_of

ERROR = {torch.bfloat16: 6e-3, torch.float32: 3e-6}


def _oracle(q: torch.Tensor, latent: torch.Tensor, first: int, scale: float, num_latent: int) -> torch.Tensor:
    scores = torch.einsum("rhd,sd->rhs", q.double(), latent.double()) * scale
    hidden = torch.arange(len(latent))[None] > first + torch.arange(len(q))[:, None]
    probabilities = scores.masked_fill(hidden[:, None], float("-inf")).softmax(-1)
    return torch.einsum("rhs,sc->rhc", probabilities, latent[:, :num_latent].double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("heads", "num_latent", "num_rope"), [(1, 32, 16), (2, 16, 8), (6, 48, 24), (16, 64, 16), (64, 512, 64)]
)
def test_a_decode_row_equals_the_row_in_any_chunk(
    threads: int, heads: int, num_latent: int, num_rope: int, dtype: torch.dtype
) -> None:
    rule = attention_rule(RuleCache(), num_latent, num_rope, dtype)
    first = int(torch.randint(0, 2 * SPLIT, ()))
    num_rows = int(torch.randint(SPLIT, SPLIT + 40, ())) if heads < 16 else 24
    latent = torch.randn(first + num_rows, num_latent + num_rope).to(dtype)
    query = (torch.randn(num_rows, heads, num_latent + num_rope) * 2).to(dtype)

    def attend(start: int, stop: int) -> torch.Tensor:
        rows = query[start:stop]
        return mla_attend(
            rows[..., :num_latent], rows[..., num_latent:], latent[: first + stop], first + start, 0.15, rule
        )

    whole = attend(0, num_rows)
    wanted = _oracle(query, latent, first, 0.15, num_latent)
    assert (whole.double() - wanted).norm() <= ERROR[dtype] * wanted.norm()
    border = SPLIT - first % SPLIT
    rows = {0, num_rows - 1, *torch.randint(0, num_rows, (5,)).tolist()}
    rows |= {row for row in (border - 2, border - 1, border, border + 1) if 0 <= row < num_rows}
    for row in rows:
        assert torch.equal(bits_of(attend(row, row + 1)[0]), bits_of(whole[row])), row
    for _ in range(3):
        start, stop = sorted(torch.randint(0, num_rows + 1, (2,)).tolist())
        if start < stop:
            assert torch.equal(bits_of(attend(start, stop)), bits_of(whole[start:stop])), (start, stop)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_noise_in_scores_is_the_same_alone(threads: int, dtype: torch.dtype) -> None:
    """Scores that cancel but for rounding, blown up to weigh in: another order of summation would show at once."""
    num_latent, num_rope, heads, num_rows = 64, 16, 4, 70
    width = num_latent + num_rope
    order = torch.randperm(width)
    latent, query = torch.randn(num_rows, width) * 8, torch.randn(num_rows, heads, width) * 8
    latent[:, order[1::2]] = -latent[:, order[0::2]]
    query[:, :, order[1::2]] = query[:, :, order[0::2]]
    latent, query = latent.to(dtype), query.to(dtype)
    rule = attention_rule(RuleCache(), num_latent, num_rope, dtype)
    q_latent, q_rope = query[..., :num_latent], query[..., num_latent:]
    whole = mla_attend(q_latent, q_rope, latent, 0, 1e4, rule)
    for row in range(0, num_rows, 3):
        alone = mla_attend(q_latent[row : row + 1], q_rope[row : row + 1], latent[: row + 1], row, 1e4, rule)
        assert torch.equal(bits_of(alone[0]), bits_of(whole[row])), row


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_plain_products_give_the_same_numbers_and_are_exact_too(threads: int, dtype: torch.dtype) -> None:
    num_rows, first = 40, 600
    latent = torch.randn(first + num_rows, 80).to(dtype)
    query = torch.randn(num_rows, 4, 80).to(dtype)
    plain = RowRule("plain", (16, 32, 64))
    whole = mla_attend(query[..., :64], query[..., 64:], latent, first, 0.1, plain)
    wanted = _oracle(query, latent, first, 0.1, 64)
    assert (whole.double() - wanted).norm() <= ERROR[dtype] * wanted.norm()
    for row in (0, 7, 39):
        alone = mla_attend(query[row : row + 1, :, :64], query[row : row + 1, :, 64:], latent, first + row, 0.1, plain)
        assert torch.equal(bits_of(alone[0]), bits_of(whole[row])), row


def test_one_position_returns_its_latent() -> None:
    rule = attention_rule(RuleCache(), 16, 8, torch.float32)
    latent = torch.randn(1, 24)
    found = mla_attend(torch.randn(1, 3, 16), torch.randn(1, 3, 8), latent, 0, 1.0, rule)
    assert torch.allclose(found, latent[:, :16].expand(1, 3, 16))


def test_latents_beyond_the_last_row_are_never_seen() -> None:
    rule = attention_rule(RuleCache(), 16, 8, torch.bfloat16)
    latent = torch.randn(400, 24).bfloat16()
    spoiled = latent.clone()
    spoiled[300:] = 1e30
    q = torch.randn(1, 2, 24).bfloat16()
    clean, found = (mla_attend(q[..., :16], q[..., 16:], given, 299, 0.2, rule) for given in (latent[:300], spoiled))
    assert torch.equal(clean, found)


def test_scores_far_apart_do_not_overflow() -> None:
    rule = attention_rule(RuleCache(), 16, 8, torch.float32)
    latent = torch.randn(700, 24)
    latent[600] *= 300
    q = latent[600].expand(1, 2, 24).contiguous()
    found = mla_attend(q[..., :16], q[..., 16:], latent, 699, 1.0, rule)
    assert torch.allclose(found[0, 0], latent[600, :16])


def test_missing_latents_are_refused() -> None:
    rule = attention_rule(RuleCache(), 16, 8, torch.float32)
    with pytest.raises(AssertionError, match="9 latents given, 10 needed"):
        mla_attend(torch.randn(1, 2, 16), torch.randn(1, 2, 8), torch.randn(9, 24), 9, 1.0, rule)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["tested", "plain"])
@pytest.mark.parametrize(("heads", "num_latent", "num_rope"), [(1, 32, 16), (4, 64, 16), (64, 128, 32), (40, 64, 16)])
def test_many_decode_rows_at_once_equal_each_alone(
    threads: int, heads: int, num_latent: int, num_rope: int, form: str, dtype: torch.dtype
) -> None:
    rule = attention_rule(RuleCache(), num_latent, num_rope, dtype)
    if form == "plain":
        rule = RowRule("plain", (16, 32, 64))
    lengths = [1, SPLIT, SPLIT + 1, *torch.randint(1, 4 * SPLIT, (4,)).tolist()]
    padded = [-(-length // SPLIT) * SPLIT for length in lengths]
    latents = [torch.randn(size, num_latent + num_rope).to(dtype) for size in padded]
    query = (torch.randn(len(lengths), heads, num_latent + num_rope) * 2).to(dtype)
    q_latent, q_rope = query[..., :num_latent], query[..., num_latent:]
    splits = torch.cat(latents).view(-1, SPLIT, num_latent + num_rope)
    together = mla_decode(q_latent, q_rope, splits, DecodePlan.of(lengths, dtype), 0.15, rule)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = mla_attend(q_latent[one], q_rope[one], latents[row], length - 1, 0.15, rule)
        assert torch.equal(bits_of(together[one]), bits_of(alone)), length
