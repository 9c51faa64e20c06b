"""The server hands its settings on, and says what it did."""

from pathlib import Path

import pytest
import torch

from expertfleet.attention_workers.config import AttentionConfig
from expertfleet.attention_workers.self_test import self_test
from expertfleet.attention_workers.server import AttentionServer
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import generate_pb2 as pb


def test_a_worker_has_as_many_requests_as_it_was_told_and_counts_those_that_it_refuses(small_checkpoint: Path) -> None:
    server = AttentionServer(
        AttentionConfig(small_checkpoint, shards=("127.0.0.1:1",), max_model_len=512, max_num_queued_reqs=2)
    )
    server.start()
    try:
        request = pb.GenerateRequest(prompt_ids=[1], max_tokens=1)
        server.service.num_open = 2
        for _ in range(3):
            with pytest.raises(FleetError, match="attention-0 has 2 requests, the limit is 2") as caught:
                server.service._admit(request)
            assert caught.value.code is Code.OVERLOADED
        server.service.num_open = 1
        with pytest.raises(FleetError, match="no experts to ask yet"):
            server.service._admit(request)
        assert server.registration.report().metrics["refused_sequences_total"] == 3
    finally:
        server.service.num_open = 0
        server.stop(0)


def test_the_class_that_a_worker_reports_is_of_all_that_decides_its_tokens(small_checkpoint: Path) -> None:
    server = AttentionServer(AttentionConfig(small_checkpoint, shards=("127.0.0.1:1",), max_model_len=512))
    server.start()
    before = torch.get_num_threads()
    try:
        server._loading.join(60)
        torch.set_num_threads(server.config.threads)
        assert server.registration.report().numerics == self_test(server.checkpoint.config, torch.bfloat16).class_name
    finally:
        torch.set_num_threads(before)
        server.stop(0)
