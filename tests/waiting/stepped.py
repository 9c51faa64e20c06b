"""Two threads in an order that the test chooses: one waits at every line of its code for the other."""

import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any


class Stepped:
    """A call on a thread of its own, which stops before each line of a module until it is told to go on."""

    def __init__(self, module: ModuleType, call: Callable[[], object]) -> None:
        self._file, self._call = module.__file__, call
        self._stopped, self._go_on = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def stops(self) -> Iterator[int]:
        """Line after line; raises what the call has raised."""
        self._thread.start()
        while True:
            assert self._stopped.acquire(timeout=60)
            if self._over:
                break
            yield self._line
            self._go_on.release()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        sys.settrace(self._trace)
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self._error = error
        finally:
            sys.settrace(None)
            self._over = True
            self._stopped.release()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != self._file:
            return None
        if event == "line":
            self._line = frame.f_lineno
            self._stopped.release()
            self._go_on.acquire()
        return self._trace
