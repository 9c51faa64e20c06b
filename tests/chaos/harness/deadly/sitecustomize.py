"""For processes of a fleet under test that have this folder in ``PYTHONPATH``: one request kills whatever worker runs it.

Knows nothing of plans. Whoever computes the 12th token of a sequence with the seed that ``CHAOS_DEADLY_SEED`` names gets SIGKILL,
as if that token's computation had crashed the process. All other requests, and all other processes, are left alone.
"""

import importlib.util
import os
import signal
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NUM_TOKENS = 12
_MODULE = "expertfleet.attention_workers.sequence"


class _Finder:
    """Finds the one module as everybody else would, and changes it once it is there."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_arm(module: ModuleType) -> None:
            load(module)
            _arm(module.Sequence, int(os.environ["CHAOS_DEADLY_SEED"]))

        spec.loader.exec_module = load_and_arm
        return spec


def _arm(kind: Any, seed: int) -> None:
    make = kind.__init__

    def armed(self: Any, *values: Any, **named: Any) -> None:
        make(self, *values, **named)
        if self.sampling.seed != seed:
            return
        publish = self.publish

        def publish_or_die(update: Any) -> None:
            if self.num_generated >= _NUM_TOKENS:
                os.kill(os.getpid(), signal.SIGKILL)
            publish(update)

        self.publish = publish_or_die

    kind.__init__ = armed


if "CHAOS_DEADLY_SEED" in os.environ:
    sys.meta_path.insert(0, _Finder())
