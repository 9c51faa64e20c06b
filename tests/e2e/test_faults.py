"""One sequence whose rows are not finite ends with a typed error; those beside it in every step do not notice."""

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from expertfleet.attention_workers.config import AttentionConfig
from expertfleet.attention_workers.sequence import SamplingParams, Sequence, Update
from expertfleet.attention_workers.server import AttentionServer
from expertfleet.proto.errors import Code, FleetError

HARMLESS = [[1, 2, 3], list(range(20, 60)), [300, 301]]


def run_all(server: AttentionServer, prompts: list[list[int]]) -> list[list[int] | FleetError]:
    """All at once, greedily."""
    inboxes: list[queue.Queue[Update]] = [queue.Queue() for _ in prompts]
    for prompt, inbox in zip(prompts, inboxes, strict=True):
        server.engine.add(Sequence("r", list(prompt), len(prompt), 12, SamplingParams(temperature=0.0), inbox.put))
    return [outcome(inbox) for inbox in inboxes]


def outcome(inbox: "queue.Queue[Update]") -> list[int] | FleetError:
    ids: list[int] = []
    while True:
        update = inbox.get(timeout=120)
        if isinstance(update, FleetError):
            return update
        ids += [token.token_id for token in update[0]]
        if update[1]:
            return ids


def test_only_the_sequences_whose_rows_are_not_finite_end(start: Callable[..., Any], small_checkpoint: Path) -> None:
    shard = start("expert_workers", "--model", small_checkpoint)
    server = AttentionServer(AttentionConfig(small_checkpoint, shards=(shard.address(),), layer_deadline_s=60))
    server.start()
    try:
        assert server.router.wait_usable(120), server.registration.report()
        assert server._model is not None
        server._model._embedding = server._model._embedding.clone()
        undisturbed = run_all(server, HARMLESS)
        written = {token for answer in undisturbed if isinstance(answer, list) for token in answer}
        cursed = next(token for token in range(400, 500) if token not in written)
        server._model._embedding[cursed] = torch.nan
        found = run_all(server, [HARMLESS[0], [11, 12, cursed, 13], HARMLESS[1], [cursed], HARMLESS[2]])
        ended = [each for each in found if isinstance(each, FleetError)]
        assert [each for each in found if not isinstance(each, FleetError)] == undisturbed
        assert [error.code for error in ended] == [Code.NON_FINITE] * 2
        assert "the hidden row is not finite" in str(ended[0])
        assert run_all(server, HARMLESS) == undisturbed
        assert not server.router.quarantined
        assert server.pages.num_free == server.pages.num_pages
    finally:
        server.stop(0)
