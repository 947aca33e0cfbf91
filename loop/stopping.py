"""SIGINT and SIGTERM: at once where nothing is lost, else after the running step and its step checkpoint.

Schedulers send SIGTERM and, mostly 30 s later, SIGKILL: a step that takes longer is given up before that.
A process may get SIGTERM twice, from the scheduler and from the process that started it.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from loop.errors import Stopped

SECONDS_FOR_A_STEP = 20.0

_patient = False  # signals and their handlers belong to the process, so what they share does, too
_requested = ""  # the name of the signal that waits for the step's end


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped where the program is; work directories stay for the resume."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGINT: _stop, signal.SIGTERM: _stop, signal.SIGALRM: _give_up}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def finishing_steps(
    together: Callable[[bool], bool] = lambda asked: asked,
) -> Iterator[Callable[[], bool]]:
    """Within, a first signal only makes the yielded function say True; the block ends by Stopped.

    Who sees it saves the step and raises InterruptedError to end the block early. A SIGINT after it (a user
    who will not wait), or SECONDS_FOR_A_STEP without an end, raise Stopped at once. Processes that take their
    steps together give `together`: whether any of them was asked, which all call at the same step.
    """
    global _patient, _requested
    _patient = True
    agreed = False

    def stopping() -> bool:
        nonlocal agreed
        agreed = together(bool(_requested))
        return agreed

    try:
        yield stopping
        if _requested:
            raise Stopped(_requested)
    except InterruptedError:
        if not (agreed or _requested):
            raise
        raise Stopped(_requested or signal.SIGTERM.name) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _patient, _requested = False, ""


def _stop(number: int, frame: FrameType | None) -> None:
    global _requested
    if _requested and number == signal.SIGTERM:
        return
    if not _patient or _requested:
        raise Stopped(signal.Signals(number).name)
    _requested = signal.Signals(number).name
    signal.setitimer(signal.ITIMER_REAL, SECONDS_FOR_A_STEP)


def _give_up(number: int, frame: FrameType | None) -> None:
    raise Stopped(_requested or signal.Signals(number).name)
