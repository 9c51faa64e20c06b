"""Health, readiness, status and metrics."""

import os
from typing import Any

import httpx
import pytest

from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import membership_pb2 as pb


def test_health_and_readiness_name_the_admin_port(rig: Any) -> None:
    for client in (rig.client, rig.admin):
        assert client.get("/health").json() == {"status": "alive", "admin": rig.gateway.admin_url}
        ready = client.get("/ready")
        assert ready.status_code == 200
        assert ready.json() == {"ready": True, "missing": None, "admin": rig.gateway.admin_url}


def test_not_ready_says_what_is_missing(rig: Any, scripts: Any) -> None:
    fleet = rig.gateway.service.fleet
    rig.worker.state = "loading"
    response = rig.client.get("/ready")
    assert response.status_code == 503
    assert response.json()["missing"] == "attention-0 is loading"
    rig.controller.missing = "no replica of 12 experts of layer 3"
    rig.controller.publish(rig.workers, complete=False)
    scripts.until(lambda: fleet.epoch.id.counter == rig.controller.epoch.id.counter, 5.0)
    assert rig.client.get("/ready").json()["missing"] == "no replica of 12 experts of layer 3"
    assert rig.client.get("/health").status_code == 200


def test_status_lists_workers_and_this_gateway(rig: Any) -> None:
    report = pb.WorkerReport(
        seat="expert-0",
        epoch=pb.EpochId(incarnation=1, counter=4),
        bytes_loaded=70,
        bytes_total=90,
        tokens=11,
        numerics="n",
    )
    rig.controller.workers = [
        pb.WorkerStatus(role="controller", seat="controller", pid=3, state="ready"),
        pb.WorkerStatus(
            role="expert",
            seat="expert-0",
            pid=4,
            node="x",
            state="ready",
            report=report,
            num_experts=16,
            quarantined_by=["attention-0"],
        ),
        pb.WorkerStatus(role="gateway", seat=rig.gateway.service.fleet.seat, pid=1, state="ready"),
    ]
    status = rig.admin.get("/status").json()
    by_role = {worker["role"]: worker for worker in status["workers"]}
    assert len(status["workers"]) == 3
    expert = by_role["expert"]
    assert {key: expert[key] for key in ("seat", "pid", "node", "state", "epoch", "numerics", "experts", "bytes", "tokens")} == {
        "seat": "expert-0", "pid": 4, "node": "x", "state": "ready", "epoch": "1.4", "numerics": "n", "experts": 16,
        "bytes": 70, "tokens": 11,
    }  # fmt: skip
    assert expert["quarantined_by"] == ["attention-0"]
    assert by_role["gateway"]["pid"] == os.getpid()
    assert status["ready"]


def test_metrics_have_vllms_names_and_those_of_workers(rig: Any) -> None:
    rig.controller.workers = [
        pb.WorkerStatus(
            role="expert",
            seat="expert-2",
            state="ready",
            report=pb.WorkerReport(metrics={"routed_rows_total": 5.0, "a.b": 1}),
        )
    ]
    rig.says("<think>a</think>b<|im_end|>")
    before = _value(rig, 'vllm:generation_tokens_total{model_name="tiny"}')
    tokens = rig.chat(model="tiny").json()["usage"]["completion_tokens"]
    assert _value(rig, 'vllm:generation_tokens_total{model_name="tiny"}') == before + tokens
    text = rig.admin.get("/metrics").text
    assert 'expertfleet_routed_rows_total{role="expert",seat="expert-2"} 5.0' in text
    assert 'expertfleet_a_b{role="expert",seat="expert-2"} 1.0' in text
    for name in ("num_requests_running", "num_requests_waiting"):
        assert f'vllm:{name}{{model_name="tiny"}} 0.0' in text
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        assert f'vllm:{name}_count{{model_name="tiny"}}' in text
    assert 'vllm:request_success_total{finished_reason="stop",model_name="tiny"}' in text
    assert 'http_requests_total{handler="/v1/chat/completions",method="POST",status="200"}' in text


def test_the_wanted_number_of_shards_is_one_series_and_absent_while_nobody_knows_it(rig: Any) -> None:
    assert "wanted_expert_shards" not in rig.admin.get("/metrics").text
    rig.controller.wanted_expert_shards = 5
    try:
        assert "\nexpertfleet_wanted_expert_shards 5.0\n" in rig.admin.get("/metrics").text
        assert rig.admin.get("/status").json()["wanted_expert_shards"] == 5
    finally:
        rig.controller.wanted_expert_shards = 0


def test_the_share_of_experts_that_survive_a_nodes_loss_is_a_metric(rig: Any) -> None:
    assert "\nexpertfleet_expert_coverage 0.0\n" in rig.admin.get("/metrics").text
    rig.controller.coverage = 0.625
    try:
        assert "\nexpertfleet_expert_coverage 0.625\n" in rig.admin.get("/metrics").text
        assert rig.admin.get("/status").json()["coverage"] == 0.625
    finally:
        rig.controller.coverage = 0.0


def test_metrics_and_status_are_not_on_the_api_port(rig: Any) -> None:
    assert rig.client.get("/metrics").status_code == 404
    assert rig.client.get("/status").status_code == 404


def test_scale_hands_the_wish_to_the_controller_and_its_answer_back(rig: Any) -> None:
    reply = rig.admin.post("/scale", json={"expert_shards": 4, "replicas": 1.5})
    assert reply.status_code == 200
    assert reply.json() == {
        "expert_seats": ["expert-0", "expert-1"],
        "attention_seats": ["attention-0"],
        "replicas": 1.5,
    }
    asked = rig.controller.wishes[-1]
    assert (asked.expert_shards, asked.replicas) == (4, 1.5)
    assert not asked.HasField("attention_workers")
    rig.controller.refusal = FleetError(Code.BAD_REQUEST, "expert_shards: 1 shard has room for 24 of 48 experts")
    refused = rig.admin.post("/scale", json={"expert_shards": 1})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "expert_shards: 1 shard has room for 24 of 48 experts"


def test_whether_it_could_do_without_seats_is_asked_of_the_controller(rig: Any) -> None:
    reply = rig.admin.get("/scale", params={"without": ["expert-3", "expert-4"]})
    assert reply.json()["expert_seats"] == ["expert-0", "expert-1"]
    assert list(rig.controller.wishes[-1].without) == ["expert-3", "expert-4"]
    rig.controller.refusal = FleetError(Code.BAD_REQUEST, "without expert-3: 1 expert shards have room for 24 of 48")
    refused = rig.admin.get("/scale", params={"without": "expert-3"})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "without expert-3: 1 expert shards have room for 24 of 48"


@pytest.mark.parametrize(
    "value", ["x" * 9_000, "x" * 12_000, "x" * 17_000, "\n" * 4_000, "é" * 3_000, "%" * 5_000, "專" * 40_000]
)
def test_a_long_refusal_of_the_controller_stays_a_400(rig: Any, value: str) -> None:
    rig.controller.refusal = FleetError(Code.BAD_REQUEST, f"drain: {value}")
    for _ in range(40):
        refused = rig.admin.post("/scale", json={"drain": "expert-1"})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "invalid_value"
        assert error["message"].startswith(f"drain: {value[:300]}")
        assert error["message"].endswith("…")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "without: 0 seats are given; 1 to 4096 can be"),
        ("expert_shards=3", "expert_shards: unknown; without can be given"),
    ],
)
def test_a_bad_question_is_a_400_that_names_it(rig: Any, query: str, message: str) -> None:
    reply = rig.admin.get(f"/scale?{query}")
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == message
    assert not rig.controller.wishes


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "expert_shards: nothing is given"),
        ({"expert_shards": 0}, "expert_shards: 0 is not a whole number from 1 to 4096"),
        ({"expert_shards": True}, "expert_shards: True is not a whole number"),
        ({"attention_workers": 1.5}, "attention_workers: 1.5 is not a whole number"),
        ({"replicas": "two"}, "replicas: 'two' is not a number from 1 to 4096"),
        ({"drain": ["expert-1"]}, "drain: ['expert-1'] is not the name of a seat"),
        ({"shards": 3}, "shards: unknown; expert_shards, attention_workers, replicas and drain can be given"),
    ],
)
def test_a_bad_wish_is_a_400_that_names_it(rig: Any, body: dict[str, Any], message: str) -> None:
    reply = rig.admin.post("/scale", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith(message)
    assert not rig.controller.wishes


def test_scale_takes_no_text_and_is_not_on_the_api_port(rig: Any) -> None:
    refused = rig.admin.post("/scale", content='{"expert_shards": 4}', headers={"content-type": "text/plain"})
    assert refused.status_code == 415
    assert rig.client.post("/scale", json={"expert_shards": 4}).status_code == 404
    assert not rig.controller.wishes


def test_scale_needs_a_key_where_there_are_keys_or_a_network(model_dir: Any, scripts: Any) -> None:
    rig = scripts.Rig(model_dir, api_key=("secret",))
    try:
        assert rig.admin.post("/scale", json={"expert_shards": 4}).status_code == 401
        assert rig.admin.get("/scale?without=expert-1").status_code == 401
        with_key = {"Authorization": "Bearer secret"}
        assert rig.admin.post("/scale", json={"expert_shards": 4}, headers=with_key).status_code == 200
        assert rig.admin.get("/status").status_code == 200
    finally:
        rig.close()
    rig = scripts.Rig(model_dir, admin_host="0.0.0.0")
    try:
        refused = rig.admin.post("/scale", json={"expert_shards": 4})
        assert refused.status_code == 403
        assert rig.admin.get("/scale?without=expert-1").status_code == 200, "asking changes nothing"
        assert "no API key guards the admin port on 0.0.0.0" in refused.json()["error"]["message"]
    finally:
        rig.close()


def test_reports_count_delivered_tokens(rig: Any, scripts: Any) -> None:
    rig.chat()
    delivered = rig.gateway.service.metrics.num_delivered
    scripts.until(lambda: bool(rig.controller.reports) and rig.controller.reports[-1].tokens == delivered, 5.0)
    assert rig.controller.reports[-1].seat == rig.gateway.service.fleet.seat


def test_without_a_controller_the_gateway_lives_and_says_so(model_dir: Any, scripts: Any) -> None:
    rig = scripts.Rig(model_dir)
    try:
        rig.run(rig.controller.server.stop(None))
        with httpx.Client(base_url=rig.gateway.admin_url, timeout=10) as admin:
            status = admin.get("/status").json()
            assert not status["ready"]
            assert "does not answer" in status["missing"]
            assert [worker["role"] for worker in status["workers"]] == ["gateway"]
            assert admin.get("/metrics").status_code == 200
        assert rig.chat().status_code == 200
    finally:
        rig.close()


def _value(rig: Any, series: str) -> float:
    lines = [line for line in rig.admin.get("/metrics").text.splitlines() if line.startswith(series)]
    return float(lines[0].split()[-1]) if lines else 0.0
