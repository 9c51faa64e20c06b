"""Which group of a compressed-tensors recipe each module of the model belongs to, as that library resolves it.

Knows nothing of what a group does to a weight. A target, or an entry of ``ignore``, is a module's whole name, ``re:`` and
an expression that a name must begin with, or a module's class. Of several targets that mean one module a name goes before
an expression, an expression before a class, and else the alphabet decides; what is ignored belongs to no group.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from .json_object import JsonObject

_ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
_EXPRESSION = "re:"
# A group may be a scheme's name with its targets; these two mean what is supported here.
_PRESETS: dict[str, dict[str, Any]] = {
    "W4A16": {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}},
    "UNQUANTIZED": {},
}


class Module(NamedTuple):
    name: str
    kind: Literal["Linear", "Embedding"]
    is_expert: bool

    @property
    def classes(self) -> tuple[str, str]:
        return self.kind, "Module"


class _Entries:
    """Targets, or what is ignored."""

    def __init__(self, entries: Iterable[str], source: JsonObject, key: str) -> None:
        ordered = sorted(set(entries))
        self._plain = {entry for entry in ordered if not entry.startswith(_EXPRESSION)}
        self._expressions = [(entry, _compiled(entry, source, key)) for entry in ordered if entry not in self._plain]

    def find(self, module: Module) -> str | None:
        """The entry that counts."""
        if module.name in self._plain:
            return module.name
        for entry, expression in self._expressions:
            if expression.match(module.name):
                return entry
        return min(self._plain.intersection(module.classes), default=None)


class Recipe:
    """``groups`` by name; ``targets`` of all of them, and to which each belongs."""

    def __init__(self, quantization: JsonObject) -> None:
        config_groups = quantization.object("config_groups")
        self.groups = {name: _group(config_groups, name) for name in config_groups.data}
        self.targets: dict[str, str] = {}
        for name, group in self.groups.items():
            self.targets.update(dict.fromkeys(_texts(group, "targets"), name))
        ignored = _texts(quantization, "ignore") if quantization.has("ignore") else []
        self._ignored = _Entries(ignored, quantization, "ignore")
        self._targeted = _Entries(self.targets, quantization, "config_groups")

    def ignores(self, module: Module) -> bool:
        return self._ignored.find(module) is not None

    def group_of(self, module: Module) -> str | None:
        """None: it is not quantized."""
        target = self._targeted.find(module)
        if target is None or self.ignores(module):
            return None
        group = self.groups[self.targets[target]]
        does_something = any(group.has(key) for key in ("weights", "input_activations", "output_activations"))
        return self.targets[target] if does_something else None


def modules(config: JsonObject) -> Iterator[Module]:
    """All modules that a recipe can quantize."""
    num_layers, num_dense = config.integer("num_hidden_layers"), config.integer("first_k_dense_replace", minimum=0)
    num_experts = config.integer("n_routed_experts")
    query = _ATTENTION if config.has("q_lora_rank") else ("q_proj", *_ATTENTION[2:])
    yield Module("lm_head", "Linear", False)
    yield Module("model.embed_tokens", "Embedding", False)
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        for projection in query:
            yield Module(f"{prefix}.self_attn.{projection}", "Linear", False)
        for projection in _FEED_FORWARD:
            if layer < num_dense:
                yield Module(f"{prefix}.mlp.{projection}", "Linear", False)
                continue
            yield Module(f"{prefix}.mlp.shared_experts.{projection}", "Linear", False)
            for expert in range(num_experts):
                yield Module(f"{prefix}.mlp.experts.{expert}.{projection}", "Linear", True)


def _group(config_groups: JsonObject, name: str) -> JsonObject:
    if not isinstance(config_groups.data[name], list):
        return config_groups.object(name)
    preset = _PRESETS.get(name.upper())
    if preset is None:
        raise config_groups.error(name, "this scheme's name is not supported (must be W4A16, or its keys spelled out)")
    group = {"targets": config_groups.items(name), **preset}
    return JsonObject(config_groups.file, group, f"{config_groups.prefix}{name}.")


def _texts(source: JsonObject, key: str) -> list[str]:
    entries = source.items(key)
    for entry in entries:
        if not isinstance(entry, str):
            raise source.error(key, f"must hold module names or patterns, holds {entry!r}")
    return entries


def _compiled(entry: str, source: JsonObject, key: str) -> re.Pattern[str]:
    try:
        return re.compile(entry.removeprefix(_EXPRESSION))
    except re.error as error:
        raise source.error(key, f"{entry!r} is not a regular expression: {error}") from error
