"""How experts are laid out, as the operator wants it: what is evened out, and how much memory further copies may take.

Knows nothing of shards beyond how many experts each has room for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...router.placement.replica_counts import Objective
from ...settings.option import Settings, option


@dataclass(frozen=True)
class PlacementSettings:
    objective: Objective = "activated"
    spare_memory: float | None = None  # the share of all memory for experts that further copies leave free

    def replicas(self, least: float, rooms: Sequence[int], num_experts: int) -> float:
        """Copies of each expert on shards with room for so many: with ``spare_memory`` as many as fit, ``least`` anyhow."""
        if self.spare_memory is None:
            return least
        room = sum(min(each, num_experts) for each in rooms)
        return max(least, min(len(rooms), (1 - self.spare_memory) * room / num_experts))


@dataclass(frozen=True, kw_only=True)
class PlacingSettings(Settings):
    """The settings of this."""

    placement_objective: Objective = option(
        "activated",
        "what is evened out over shards: activated, the experts that a step reads, or tokens, the rows that are routed",
        group="workers",
    )
    spare_memory: float | None = option(
        None,
        "copies fill the shards' memory but for this share of it (0.2: a fifth stays free), --replicas being the least; if not "
        "given, --replicas is all there is",
        group="memory",
        range=(0, 0.95),
    )

    @property
    def placing(self) -> PlacementSettings:
        return PlacementSettings(self.placement_objective, self.spare_memory)
