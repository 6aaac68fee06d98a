from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait.cli.interrupts import Terminated, reliable_interrupts


def test_an_interrupt_is_raised_where_it_happens() -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^$"), reliable_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_is_raised_where_it_happens_and_no_error() -> None:
    with pytest.raises(Terminated, match=r"^$") as raised, reliable_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert not isinstance(raised.value, Exception)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_import_is_ended_at_once(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(f"import signal\nsignal.raise_signal({number.value})\n")
    code = "from plait.cli.interrupts import Terminated, reliable_interrupts\nwith reliable_interrupts(): import slow"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False, timeout=20)
    says = b"plait: ended by SIGTERM\n" if number == signal.SIGTERM else b""
    assert (done.returncode, done.stderr) == (128 + number, says)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=["SIGINT", "SIGTERM"]
)
def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_not_lost(
    number: signal.Signals, raised: type[BaseException]
) -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(callback)
        signal.raise_signal(number)

    def collect_and_go_on() -> None:
        gc.collect()
        time.sleep(5)

    gc.callbacks.append(callback)
    with pytest.raises(raised, match=r"^$"), reliable_interrupts():
        collect_and_go_on()


def test_where_it_is_ignored_it_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with reliable_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
