"""What an installation says at its end: commands that fit what was rendered, and warnings where something stands open."""

import re

import fleet_chart as chart


def notes(**values: object) -> str:
    """By Helm 4 alone: Helm 3 asks a cluster before it says any."""
    arguments = ("install", "fleet", str(chart.CHART), "--namespace", "serving", "--dry-run=client")
    done = chart.run_helm("4", *arguments, "--values", chart.preset_file("demo"), values=dict(values))
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


def test_the_next_three_commands_name_what_is_there() -> None:
    text = notes()
    commands = [line.strip() for line in text.splitlines() if line.startswith("     ")]
    assert len(commands) == 3
    assert commands[0].startswith("kubectl -n serving rollout status deployment/fleet-expertfleet-gateway")
    assert commands[1] == "kubectl -n serving port-forward deployment/fleet-expertfleet-gateway 8000 8001"
    assert commands[2] == "expertfleet status --url http://127.0.0.1:8001 && expertfleet chat"
    objects = {(thing["kind"].lower(), thing["metadata"]["name"]) for thing in chart.render()}
    for kind, name in re.findall(r"(deployment|statefulset)[/ ](\S+)", text):
        assert (kind, name) in objects


def test_what_stands_open_is_said() -> None:
    assert "WARNING: apiKeys.open is true" in notes()
    assert "networkPolicy" not in notes()
    careful = notes(apiKeys={"existingSecret": "keys", "open": False}, networkPolicy={"enabled": False})
    assert "apiKeys" not in careful
    assert "--api-key YOUR_KEY" in careful
    assert "WARNING: networkPolicy.enabled" in careful


def test_scaling_by_hand_is_told_to_go_with_the_same_number_in_the_values() -> None:
    assert "give expertShards.replicas that number" in notes()
    assert "give expertShards.replicas that number" not in notes(expertShards={"replicas": None})
