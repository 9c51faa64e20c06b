"""One option of a configuration: type, default, help, range and group stand in one dataclass field.

Knows nothing of any role, of files and of command lines. The role's configuration and the fleet's inherit the same mix-in of
options; ``derive`` makes the role's configuration of the fleet's.
"""

import dataclasses
import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

Group = Literal["model", "workers", "memory", "network", "limits", "failure"]
GROUPS: tuple[Group, ...] = get_args(Group)

C = TypeVar("C", bound="Settings")


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    group: Group = "workers",
    range: tuple[float, float] | None = None,
    zero: bool = False,
    pattern: str = "",
    common: bool = False,
    secret: bool = False,
) -> Any:
    """A dataclass field; its default is no list and no dict (use tuples).

    ``range`` holds for a value that is given, ``zero`` allows 0 besides. ``pattern`` is for the chart's schema. Help shows ``common``
    options first in their group.
    """
    told = {"help": help, "group": group, "range": range, "zero": zero, "pattern": pattern}
    return dataclasses.field(default=default, metadata={**told, "common": common, "secret": secret})


def redefine(config: type, name: str, default: Any, help: str) -> Any:
    """The option ``name`` of ``config`` with another default and meaning; its range and group stay."""
    (field,) = (each for each in dataclasses.fields(config) if each.name == name)
    return dataclasses.field(default=default, metadata={**field.metadata, "help": help})


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError naming the setting, its value and the limits."""
    if not low <= value <= high:
        shown = f"{value:g}" if isinstance(value, float) else value
        raise ValueError(f"{name}: {shown} is not within {low} to {high}")


@dataclass(frozen=True)
class Settings:
    """Options, checked as they are built: every range, then what ``check`` of each mix-in says."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, limits = getattr(self, field.name), field.metadata["range"]
            if limits is not None and value is not None and not (field.metadata["zero"] and value == 0):
                within(field.name, value, *limits)
        self.check()

    def check(self) -> None:
        """A mix-in extends it for what no range says. Raises ValueError naming the setting."""


def derive(role: type[C], source: Settings, own: Collection[str], **given: Any) -> C:
    """``role``'s configuration. An option of a mix-in that ``source`` inherits too is copied; one in ``own`` keeps its default.

    Raises TypeError for an option that is neither copied, nor given, nor ``own``.
    """
    values = dict(given)
    for field in dataclasses.fields(role):
        if field.name in given or field.name in own:
            continue
        if not isinstance(source, _declaring(role, field.name)):
            raise TypeError(f"{role.__name__}.{field.name}: {type(source).__name__} neither has it nor gives it")
        values[field.name] = getattr(source, field.name)
    return role(**values)


def _declaring(config: type, name: str) -> type:
    """The mix-in that declared the option ``name`` first."""
    return next(each for each in reversed(config.__mro__) if name in inspect.get_annotations(each))
