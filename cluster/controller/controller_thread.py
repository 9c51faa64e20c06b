"""A controller on a thread and event loop of its own, for processes whose main thread does something else.

The thread knows nothing of what the controller does; any other thread may call it here.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from .controller import Controller
from .desired_state import DesiredState

T = TypeVar("T")
_ANSWER_S = 30.0


class ControllerThread:
    def __init__(self, controller: Controller) -> None:
        """Returns when the controller serves. Raises OSError when its port is taken."""
        self.controller = controller
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="controller", daemon=True).start()
        self.call(controller.start())

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """``work`` of the controller's, on its loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)

    def desired(self) -> DesiredState:
        return self.controller.desired

    def occupied(self) -> set[str]:
        return self.call(self.controller.occupied())

    def vacancies(self) -> dict[str, str]:
        return self.call(self.controller.vacancies())

    def offer(self, seats: dict[str, str]) -> None:
        self.call(self.controller.offer(seats))

    def forget(self, seats: list[str]) -> None:
        self.call(self.controller.forget(seats))

    def stop(self) -> None:
        self.call(self.controller.stop())
