#!/usr/bin/env bash
# kubernetes-validate 1.37.0, Python 3.11, 2026-12-01.
#
# A Deployment whose `selector` and `template` are null, and a StatefulSet whose `spec` is null, are validated in strict mode.
# Both keys of the Deployment's spec are required objects.
# Expected: refused, as null is no object (and as a misspelled key or a number in their place is refused).
# Seen: accepted. A chart that renders `template:` with nothing below it passes the check.
# Output:
#   selector: null, template: null -> accepted
#   spec: null -> accepted
#   template: 5 -> refused
#   tmplate: {} -> refused
# Exits 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kubernetes-validate==1.37.0 2>/dev/null
cat > "$folder/nulls.py" <<'PY'
import sys

import kubernetes_validate


def verdict(kind, spec):
    manifest = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    try:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
    except kubernetes_validate.ValidationError:
        return "refused"
    return "accepted"


pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
selector = {"matchLabels": {"a": "b"}}
assert verdict("Deployment", {"selector": selector, "template": pod}) == "accepted"
seen = [
    verdict("Deployment", {"selector": None, "template": None}),
    verdict("StatefulSet", None),
    verdict("Deployment", {"selector": selector, "template": 5}),
    verdict("Deployment", {"selector": selector, "template": pod, "tmplate": {}}),
]
for what, said in zip(("selector: null, template: null", "spec: null", "template: 5", "tmplate: {}"), seen, strict=True):
    print(f"{what} -> {said}")
sys.exit(0 if seen == ["accepted", "accepted", "refused", "refused"] else 1)
PY
"$folder/venv/bin/python" "$folder/nulls.py" 2>/dev/null
