"""Ctrl-C at any moment: what Python's own handler makes of it is not enough here.

It raises KeyboardInterrupt wherever the program is. In the middle of an import, native libraries turn that into an
ImportError or a crash; in a destructor or a callback of the garbage collector it is printed and forgotten. During an
import there is nothing to clean up yet, so the process ends at once; what would be forgotten is raised again.
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

__all__ = ["EXIT_CODE", "reliable_interrupts"]

EXIT_CODE = 130  # 128 + SIGINT, as shells have it
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar has hidden
_RETRY_SECONDS = 0.02  # until the destructor or callback has returned


@contextmanager
def reliable_interrupts() -> Iterator[None]:
    """Makes SIGINT in this block end an import at once, and raise KeyboardInterrupt anywhere else.

    Does nothing where SIGINT is ignored, as in a background job of a script.
    """
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    if handler is not signal.default_int_handler:
        yield
        return

    def unraisable(event: sys.UnraisableHookArgs) -> None:
        if issubclass(event.exc_type, KeyboardInterrupt):
            threading.Timer(_RETRY_SECONDS, _thread.interrupt_main).start()
        else:
            hook(event)

    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), _SHOW_CURSOR.encode())
        os._exit(EXIT_CODE)
    signal.default_int_handler(number, frame)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
