from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait.cli.interrupts import reliable_interrupts


def test_an_interrupt_is_raised_where_it_happens() -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^$"), reliable_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_import_is_ended_at_once(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    code = "from plait.cli.interrupts import reliable_interrupts\nwith reliable_interrupts(): import slow"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (130, b"")


def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_not_lost() -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGINT)

    def collect_and_go_on() -> None:
        gc.collect()
        time.sleep(5)

    gc.callbacks.append(callback)
    with pytest.raises(KeyboardInterrupt, match=r"^$"), reliable_interrupts():
        collect_and_go_on()


def test_where_it_is_ignored_it_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with reliable_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
