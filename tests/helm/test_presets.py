"""The arithmetic that the presets' comments claim, from the models' own configuration."""

import json
from typing import Any

import fleet_chart as chart
import yaml

from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.checkpoint.tiny_config import SHAPES, config_document
from expertfleet.demo.bundled import NANO_K2

GIB = 1 << 30
K2 = ModelConfig.from_dict(config_document(SHAPES["kimi-k2-thinking"]))


def values_of(preset: str) -> Any:
    return yaml.safe_load((chart.CHART / f"values-{preset}.yaml").read_text())


def num_experts(model: ModelConfig) -> int:
    return (model.num_layers - model.num_dense_layers) * model.num_experts


def held(memory_gib: float, model: ModelConfig) -> int:
    return int(memory_gib * GIB // model.expert_bytes)


def test_the_hybrid_fleet_holds_its_copies_even_without_one_cpu_machine() -> None:
    values = values_of("k2-hybrid")
    shards, gpus = values["expertShards"], values["expertGroups"]["gpu"]
    by_cpu, by_gpu = held(shards["settings"]["memoryGib"], K2), held(gpus["settings"]["memoryGib"], K2)
    assert (num_experts(K2), K2.expert_bytes) == (23_040, 24_772_608)
    assert (by_gpu, by_cpu) == (3_034, 5_548)
    wanted = num_experts(K2) * values["expertReplicas"]
    assert (shards["replicas"] - 1) * by_cpu + gpus["replicas"] * by_gpu >= wanted


def test_its_fewest_cpu_machines_hold_the_model_without_the_gpu_and_one_less_does_not() -> None:
    shards = values_of("k2-hybrid")["expertShards"]
    by_cpu = held(shards["settings"]["memoryGib"], K2)
    assert shards["minReplicas"] * by_cpu >= num_experts(K2) > (shards["minReplicas"] - 1) * by_cpu


def test_each_of_the_demos_shards_holds_the_whole_model() -> None:
    model = ModelConfig.from_dict(json.loads((NANO_K2 / "config.json").read_text()))
    values = values_of("demo")
    assert num_experts(model) == 96
    assert held(values["expertShards"]["settings"]["memoryGib"], model) >= num_experts(model)
    assert values["expertReplicas"] == values["expertShards"]["replicas"] == 2


def test_the_demo_fits_on_two_small_nodes() -> None:
    memory = processors = 0.0
    for thing in chart.render("demo"):
        if thing["kind"] in ("StatefulSet", "Deployment"):
            (container,) = thing["spec"]["template"]["spec"]["containers"]
            requests = container["resources"]["requests"]
            memory += thing["spec"]["replicas"] * int(requests["memory"].removesuffix("Mi")) / 1024
            processors += thing["spec"]["replicas"] * int(requests["cpu"].removesuffix("m")) / 1000
    assert round(memory, 2) == 8.75
    assert processors < 2 * 2 * 0.75, "two nodes of two processors, a quarter of them left for the cluster's own pods"
