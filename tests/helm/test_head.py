"""The head: one pod with one volume, behind an address that stays."""

import fleet_chart as chart


def test_there_is_one_head_and_its_volume_outlives_it() -> None:
    head = chart.named(chart.render(), "StatefulSet", "-head")["spec"]
    assert head["replicas"] == 1
    assert head["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    (claim,) = head["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"
    (container,) = head["template"]["spec"]["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == claim["metadata"]["name"])
    assert f"--storage={mount['mountPath']}" in container["args"]


def test_no_label_of_the_volume_changes_with_the_chart() -> None:
    (claim,) = chart.named(chart.render(), "StatefulSet", "-head")["spec"]["volumeClaimTemplates"]
    assert set(claim["metadata"]) == {"name"}, "Kubernetes refuses to change it"


def test_its_service_has_an_address_of_its_own() -> None:
    objects = chart.render()
    service = chart.named(objects, "Service", "-head")["spec"]
    assert service["type"] == "ClusterIP"
    assert "clusterIP" not in service
    assert service["publishNotReadyAddresses"] is True
    assert {port["name"]: port["port"] for port in service["ports"]} == {"ray": 6379, "controller": 7411}
    (container,) = chart.named(objects, "StatefulSet", "-head")["spec"]["template"]["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"ray": 6379, "controller": 7411}
    assert {"--ray-port=6379", "--controller-port=7411"} <= set(container["args"])


def test_its_probes_knock_at_the_controller() -> None:
    (container,) = chart.named(chart.render(), "StatefulSet", "-head")["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["tcpSocket"] == {"port": "controller"}


def test_classes_of_volumes_can_be_chosen() -> None:
    values: chart.Values = {"head": {"storage": {"storageClassName": "fast"}}}
    (claim,) = chart.named(chart.render("demo", values), "StatefulSet", "-head")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
