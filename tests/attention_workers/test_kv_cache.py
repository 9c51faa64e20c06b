"""Pages change owners; what one left behind never reaches the next."""

import torch

from expertfleet.attention_workers.kv_cache import PAGE, LatentCache
from expertfleet.attention_workers.model import Batch
from expertfleet.attention_workers.scheduler import Chunk
from expertfleet.attention_workers.sequence import SamplingParams, Sequence


def test_a_step_names_the_pages_that_it_begins() -> None:
    sequence = Sequence("r", [1] * (PAGE + 5), PAGE + 5, 1, SamplingParams(), lambda update: None, pages=[4, 2])
    assert Batch.of([Chunk(sequence, 0, 10)], torch.float32).fresh_pages == [4]
    assert Batch.of([Chunk(sequence, 10, PAGE - 5)], torch.float32).fresh_pages == [2]
    assert Batch.of([Chunk(sequence, PAGE + 4, 1)], torch.float32).fresh_pages == []


def test_a_cleared_page_is_zero_in_every_layer_and_no_other_page_is() -> None:
    cache = LatentCache(2, 3, 8, torch.float32)
    for layer in range(2):
        cache.write(layer, torch.arange(3 * PAGE), torch.full((3 * PAGE, 8), float("nan")))
    cache.clear([1])
    for layer in range(2):
        assert cache.pages(layer, torch.tensor([1])).eq(0).all()
        assert cache.pages(layer, torch.tensor([0, 2])).isnan().all()
