"""Stations in processes of their own: each has its own interpreter, arrays and memory, as a server has.

Calls and results go through a pipe, one after the other. A child ends when the pipe is closed, so none outlives the
benchmark.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

from ....errors import ExecutionError, PlaitError
from .station import Ahead, Block, StationSpec, Switch, opened

__all__ = ["RemoteStation"]

_END_SECONDS = 20.0


@dataclass(frozen=True)
class _Failure:
    """What went wrong there, in a line."""

    message: str


class RemoteStation:
    """A station in a child process.

    Args:
        spec: Of its runtime.

    Raises:
        ExecutionError: with what making the runtime said, if it failed.
    """

    def __init__(self, spec: StationSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec), daemon=True)
        self._process.start()
        theirs.close()
        self._result()

    def block(self, ahead: Ahead, num_turns: int, *, cold_files: bool = False) -> Block:
        """Runs turns; as `Station.block`."""
        return cast(Block, self._call("block", ahead, num_turns, cold_files=cold_files))

    def switches(self, num_switches: int, *, cold_files: bool = False) -> list[Switch]:
        """Makes two models hot in turn; as `Station.switches`."""
        return cast(list[Switch], self._call("switches", num_switches, cold_files=cold_files))

    def passage(self, number: int) -> tuple[str, float]:
        """Returns a passage; as `Station.passage`."""
        return cast(tuple[str, float], self._call("passage", number))

    def timeline(self, ahead: Ahead, num_turns: int) -> bytes:
        """Returns a trace; as `Station.timeline`."""
        return cast(bytes, self._call("timeline", ahead, num_turns))

    def close(self) -> None:
        """Ends the process, at once if it is still at something: then nobody wants the result any more."""
        if self._owes_result:
            self._process.kill()
        self._pipe.close()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _call(self, method: str, *arguments: object, **options: object) -> object:
        self._pipe.send((method, arguments, options))
        return self._result()

    def _result(self) -> object:
        self._owes_result = True
        try:
            result = self._pipe.recv()
        except EOFError:
            self._process.join(_END_SECONDS)
            raise ExecutionError(
                f"a process of the benchmark has ended with code {self._process.exitcode}; is there memory enough?"
            ) from None
        self._owes_result = False
        if isinstance(result, _Failure):
            raise ExecutionError(result.message)
        return result


def _serve(pipe: Connection, spec: StationSpec) -> None:
    """Answers calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    try:
        station = opened(spec)
    except PlaitError as error:
        pipe.send(_Failure(str(error)))
        return
    pipe.send(None)
    try:
        while True:
            method, arguments, options = pipe.recv()
            pipe.send(_outcome(getattr(station, method), arguments, options))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        station.close()
        sys.stdout.flush()


def _outcome(call: Callable[..., object], arguments: tuple[object, ...], options: dict[str, object]) -> object:
    try:
        return call(*arguments, **options)
    except PlaitError as error:
        return _Failure(str(error))
