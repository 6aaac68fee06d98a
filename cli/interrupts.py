"""Ctrl-C and SIGTERM at any moment: what Python's own handlers make of them is not enough here.

SIGTERM kills, and leaves temporary files and a hidden cursor behind: so, like Ctrl-C, it becomes an exception that is
raised wherever the program is. In the middle of an import, native libraries turn that into an ImportError or a crash;
in a destructor or a callback of the garbage collector it is printed and forgotten. During an import there is nothing to
clean up yet, so the process ends at once; what would be forgotten is raised again.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["TERMINATED", "Terminated", "exit_code", "reliable_interrupts"]

TERMINATED = "ended by SIGTERM"
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar has hidden
_RETRY_SECONDS = 0.02  # until the destructor or callback has returned


class Terminated(BaseException):
    """SIGTERM came: no error, so nothing that catches errors catches it."""


def exit_code(number: int) -> int:
    """Returns the exit code of a process that a signal ended, as shells have it."""
    return 128 + number


@contextmanager
def reliable_interrupts() -> Iterator[None]:
    """Makes SIGINT and SIGTERM in this block end an import at once, and raise their exceptions anywhere else.

    Does nothing about a signal that is ignored, as SIGINT is in a background job of a script.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = [number for number, handler in defaults.items() if signal.getsignal(number) is handler]
    hook = sys.unraisablehook

    def unraisable(event: sys.UnraisableHookArgs) -> None:
        if issubclass(event.exc_type, (KeyboardInterrupt, Terminated)):
            number = signal.SIGTERM if issubclass(event.exc_type, Terminated) else signal.SIGINT
            threading.Timer(_RETRY_SECONDS, _thread.interrupt_main, [number]).start()
        else:
            hook(event)

    for number in ours:
        signal.signal(number, _interrupt)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number in ours:
            signal.signal(number, defaults[number])


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
        line = f"plait: {TERMINATED}\n" if number == signal.SIGTERM else ""
        os.write(sys.stderr.fileno(), (cursor + line).encode())
        os._exit(exit_code(number))
    if number == signal.SIGTERM:
        raise Terminated
    signal.default_int_handler(number, frame)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
