#!/usr/bin/env bash
# compressed-tensors 0.20.0 with torch 2.13.0, Python 3.11, 2026-12-01.
#
# A recipe has two groups whose patterns both match a module: the first wants 4 bits ("re:.*up_proj"), the second 8 bits
# ("re:.*experts.*").
# Expected: the order in the recipe decides: the first group's (4 bits), or the last one's as the more general rule.
# Seen: the alphabet decides. Of several patterns that match, the one that sorts first is taken, whichever group it is in and
#   however the groups are ordered; so renaming nothing but a pattern's first letters changes a model's bits.
# Output:
#   groups in the order up_proj (4 bits), experts (8 bits): 8 bits
#   groups in the order experts (8 bits), up_proj (4 bits): 8 bits
#   the same rule for experts written as "re:model.*experts.*": 4 bits
# Exits 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check compressed-tensors==0.20.0 2>/dev/null
cat > "$folder/groups.py" <<'PY'
import sys

import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config


def bits(*groups):
    """Bits that the only expert's up_proj gets from ``groups``, (pattern, bits) in their order."""
    model = torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.experts = torch.nn.Module()
    model.model.experts.up_proj = torch.nn.Linear(32, 32, bias=False)
    recipe = {
        f"group_{number}": {"targets": [pattern], "weights": {"num_bits": width, "strategy": "group", "group_size": 32}}
        for number, (pattern, width) in enumerate(groups)
    }
    apply_quantization_config(model, QuantizationConfig(config_groups=recipe))
    return model.model.experts.up_proj.quantization_scheme.weights.num_bits


up, experts, named = ("re:.*up_proj", 4), ("re:.*experts.*", 8), ("re:model.*experts.*", 8)
seen = bits(up, experts), bits(experts, up), bits(up, named)
print(f"groups in the order up_proj (4 bits), experts (8 bits): {seen[0]} bits")
print(f"groups in the order experts (8 bits), up_proj (4 bits): {seen[1]} bits")
print(f'the same rule for experts written as "re:model.*experts.*": {seen[2]} bits')
sys.exit(0 if seen == (8, 8, 4) else 1)
PY
"$folder/venv/bin/python" "$folder/groups.py" 2>/dev/null
