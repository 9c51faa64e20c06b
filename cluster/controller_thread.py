"""A controller on a thread and event loop of its own, for processes whose main thread does something else.

Knows nothing of what the controller does.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .controller import Controller

T = TypeVar("T")
_ANSWER_S = 30.0


class ControllerThread:
    def __init__(self, controller: Controller) -> None:
        """Returns when the controller serves. Raises OSError when its port is taken."""
        self.controller = controller
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="controller", daemon=True).start()
        self._wait_for(controller.start())

    def call(self, work: Callable[[Controller], T]) -> T:
        """``work`` on the controller's loop."""

        async def on_loop() -> T:
            return work(self.controller)

        return self._wait_for(on_loop())

    def stop(self) -> None:
        self._wait_for(self.controller.stop())

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)
