"""Every flag and variable that the chart gives is a setting of the role that gets it, with a value that the role accepts."""

from typing import Any

import fleet_chart as chart
import pytest

from expertfleet.attention_workers.config import AttentionConfig
from expertfleet.cluster.__main__ import make_parser
from expertfleet.cluster.commands.head import HeadConfig
from expertfleet.cluster.commands.node import NodeConfig, read_node_config
from expertfleet.cluster.ray.offer import Offer
from expertfleet.demo.bundled import NANO_K2
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.gateway.config import GatewayConfig
from expertfleet.settings.reader import resolve

ROLES: dict[tuple[str, ...], type] = {
    ("head",): HeadConfig,
    ("gateway",): GatewayConfig,
    ("node", "attention"): AttentionConfig,
    ("node", "expert"): ExpertConfig,
}
POD = {"POD_IP": "10.0.0.7", "POD_INDEX": "3", "NODE_NAME": "machine-1"}
TOKEN = "0123456789abcdef0123456789abcdef"


def command_of(container: chart.Object) -> tuple[str, ...] | None:
    """None for the containers that wait, pull and mark."""
    arguments = container.get("args", [])
    return next((command for command in ROLES if tuple(arguments[: len(command)]) == command), None)


def commands(objects: list[chart.Object]) -> list[tuple[str, tuple[str, ...], chart.Object]]:
    found = [(name, command_of(container), container) for name, container in chart.containers(objects)]
    return [(name, command, container) for name, command, container in found if command is not None]


def read(command: tuple[str, ...], container: chart.Object) -> tuple[Any, NodeConfig | None]:
    """The role's settings, and a node's own flags. The certificate, the keys and the model of the pod are not here."""
    flags = container["args"][len(command) :]
    for name, value in POD.items():
        flags = [flag.replace(f"$({name})", value) for flag in flags]
    parsed = vars(make_parser().parse_args([*command, *flags]))
    given = {name: value for name, value in parsed.items() if name not in ("tls_dir", "api_key_file")}
    given |= {"api_key": "a-key"} if "api_key_file" in parsed else {}
    environ = {variable["name"]: TOKEN for variable in container["env"] if variable["name"].startswith("EXPERTFLEET_")}
    if command[0] == "node":
        node, worker = read_node_config(given, environ)
        return worker, node
    model = {"model": str(NANO_K2)} if command == ("gateway",) else {}
    return resolve(ROLES[command], flags={**given, **model}, environ=environ), None


@pytest.mark.parametrize("preset", [*chart.PRESETS, "everything"])
def test_every_role_accepts_what_it_is_given(preset: str) -> None:
    objects = chart.render_everything() if preset == "everything" else chart.render(preset)
    found = commands(objects)
    assert {command for _, command, _ in found} == set(ROLES)
    for name, command, container in found:
        settings, _ = read(command, container)
        assert settings.cluster_token == TOKEN, name


def test_a_flag_that_no_role_has_is_noticed() -> None:
    ((_, command, container),) = (found for found in commands(chart.render()) if found[1] == ("head",))
    with pytest.raises(SystemExit):
        read(command, {**container, "args": [*container["args"], "--forgets=3"]})


def test_every_setting_of_the_values_arrives() -> None:
    values: chart.Values = {
        "dtype": "float32",
        "model": {"maxModelLen": 4096, "servedNames": ["a", "b"]},
        "lanes": {"maxFrameMib": 128},
        "expertReplicas": 1.25,
        "head": {"forgetS": 42, "gatherS": 0, "placementObjective": "tokens", "spareMemory": 0.2},
        "attention": {
            "settings": {
                "cacheGib": 0.125,
                "maxNumSeqs": 7,
                "maxNumQueuedReqs": 9,
                "layerDeadlineS": 2.5,
                "maxMicroBatches": 3,
            }
        },
        "expertShards": {"settings": {"sliceMs": 0.5, "backend": "reference", "maxQueuedFrames": 1000000}},
        "gateway": {
            "settings": {
                "firstChunkS": 0.25,
                "accessLog": True,
                "keepAliveS": None,
                "drainS": 86400,
                "onInexact": "continue",
            }
        },
    }
    read_all = {command: read(command, container) for _, command, container in commands(chart.render("demo", values))}
    head, _ = read_all["head",]
    assert (head.replicas, head.forget_s, head.gather_s, head.dtype) == (1.25, 42, 0, "float32")
    assert (head.placement_objective, head.spare_memory) == ("tokens", 0.2)
    attention, node = read_all["node", "attention"]
    assert (attention.dtype, attention.max_model_len, attention.max_frame_mib) == ("float32", 4096, 128)
    assert (attention.cache_gib, attention.max_num_seqs, attention.layer_deadline_s) == (0.125, 7, 2.5)
    assert attention.max_num_queued_reqs == 9
    assert (attention.max_micro_batches, attention.local_lanes) == (3, False)
    assert node is not None
    assert node.leave_s == 60
    expert, _ = read_all["node", "expert"]
    assert (expert.slice_ms, expert.backend, expert.max_queued_frames) == (0.5, "reference", 1000000)
    assert (expert.dtype, expert.max_frame_mib, expert.memory_gib) == ("float32", 128, 0.25)
    gateway, _ = read_all["gateway",]
    assert (gateway.first_chunk_s, gateway.access_log, gateway.drain_s) == (0.25, True, 86400)
    assert (gateway.on_inexact, gateway.max_worker_deaths) == ("continue", 2)
    assert gateway.keep_alive_s == 15, "null leaves the flag out"
    assert gateway.served_model_name == ("a", "b")
    assert gateway.max_model_len is None, "it takes what its workers have"


def test_seats_and_addresses_are_those_of_the_pod() -> None:
    objects = chart.render("k2-hybrid")
    for _, command, container in commands(objects):
        if command[0] != "node":
            continue
        settings, node = read(command, container)
        assert settings.seat == f"{command[1]}-3"
        assert Offer(settings.seat, "a").resource == f"seat-{command[1]}-3.a"
        assert (settings.host, settings.node) == ("10.0.0.7", "machine-1")
        assert settings.port in [port["containerPort"] for port in container["ports"]]
        assert (settings.controller, node.head) == ("fleet-expertfleet-head:7411", "fleet-expertfleet-head:6379")


def test_pod_variables_come_from_the_pod_itself() -> None:
    for name, command, container in commands(chart.render()):
        told = {
            v["name"]: v["valueFrom"]["fieldRef"]["fieldPath"]
            for v in container["env"]
            if "fieldRef" in v.get("valueFrom", {})
        }
        used = {variable for variable in POD if any(f"$({variable})" in argument for argument in container["args"])}
        assert set(told) == used, name
        if command[0] == "node":
            assert told["POD_INDEX"] == "metadata.labels['apps.kubernetes.io/pod-index']"
            assert told["NODE_NAME"] == "spec.nodeName"


def test_tls_is_mounted_where_every_role_looks_for_it() -> None:
    objects = chart.render("demo", {"tls": {"existingSecret": "certificate"}})
    for name, _, container in commands(objects):
        assert "--tls-dir=/tls" in container["args"], name
        (mount,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == "/tls")
        assert "subPath" not in mount, "a renewed certificate would not arrive"
    for owner, pod in chart.pods(objects):
        assert {"name": "tls", "secret": {"secretName": "certificate", "defaultMode": 0o440}} in pod["spec"][
            "volumes"
        ], owner


def test_the_model_lies_where_every_role_is_told() -> None:
    for preset, path in (("demo", "/opt/expertfleet/nano-k2"), ("k2-hybrid", "/model/Kimi-K2-Thinking")):
        for name, _, container in commands(chart.render(preset)):
            assert f"--model={path}" in container["args"], name
            mounted = any(path.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])
            assert mounted == (preset == "k2-hybrid"), name


def test_the_ready_file_can_be_written_and_is_what_the_probes_read() -> None:
    for _, command, container in commands(chart.render()):
        if command[0] == "node":
            _, node = read(command, container)
            folder = node.ready_file.parent
            assert str(folder) in [mount["mountPath"] for mount in container["volumeMounts"]]
            for probe in ("startupProbe", "readinessProbe"):
                assert container[probe]["exec"]["command"] == ["cat", str(node.ready_file)]
            assert "livenessProbe" not in container
