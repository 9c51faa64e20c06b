"""A ValidatingAdmissionPolicy as an API server applies it, its expressions evaluated by an implementation of their language.

Knows the parts that the chart uses: namespace and rule matched, then conditions, variables in order, and validations.
"""

from collections.abc import Mapping
from typing import Any

import cel
import fleet_chart as chart


class Policy:
    def __init__(self, objects: list[chart.Object]) -> None:
        (policy,) = chart.of_kind(objects, "ValidatingAdmissionPolicy")
        (binding,) = chart.of_kind(objects, "ValidatingAdmissionPolicyBinding")
        assert binding["spec"]["policyName"] == policy["metadata"]["name"]
        assert binding["spec"]["validationActions"] == ["Deny"]
        self._spec, self._binding = policy["spec"], binding["spec"]

    def refusal(
        self, operation: str, resource: str, namespace: str, name: str, before: chart.Object, after: chart.Object
    ) -> str:
        """What the client is told; empty where it may."""
        rules = self._spec["matchConstraints"]["resourceRules"]
        if not any(operation in rule["operations"] and resource in rule["resources"] for rule in rules):
            return ""
        labels = {"kubernetes.io/metadata.name": namespace}
        if not self._binding["matchResources"]["namespaceSelector"]["matchLabels"].items() <= labels.items():
            return ""
        known: dict[str, Any] = {
            "request": {"namespace": namespace, "name": name, "operation": operation},
            "object": after,
            "oldObject": before,
        }
        if not all(cel.evaluate(condition["expression"], known) for condition in self._spec["matchConditions"]):
            return ""
        variables: dict[str, Any] = {}
        for variable in self._spec["variables"]:
            variables[variable["name"]] = cel.evaluate(variable["expression"], {**known, "variables": variables})
        return self._validated({**known, "variables": variables})

    def _validated(self, known: Mapping[str, Any]) -> str:
        for validation in self._spec["validations"]:
            if not cel.evaluate(validation["expression"], dict(known)):
                return str(cel.evaluate(validation["messageExpression"], dict(known)))
        return ""
