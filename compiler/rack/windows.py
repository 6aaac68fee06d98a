"""Where copies are: windows of devices in a row, filled so that DDR is about as full on each.

A model that goes over all devices has one window. One that goes over fewer has a window at each multiple of its number
of devices, and its copies are spread over them; of a single copy the window is chosen where least is so far, large
models first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .plan import DeviceBytes, Window

__all__ = ["place_windows"]


def place_windows(
    held: Mapping[str, Sequence[DeviceBytes]],
    copies: Mapping[str, int],
    num_devices: int,
    together: Sequence[tuple[str, str]] = (),
) -> dict[str, tuple[Window, ...]]:
    """Returns the windows of each model.

    Args:
        held: What each device of a copy holds, by model.
        copies: By model.
        num_devices: Of the target.
        together: Pairs that begin at the same device.
    """
    load = [0] * num_devices
    windows: dict[str, tuple[Window, ...]] = {}
    partner = {one: other for pair in together for one, other in (pair, pair[::-1])}
    for name in sorted(held, key=lambda name: (-len(held[name]), -sum(each.weights_bytes for each in held[name]))):
        size = len(held[name])
        firsts = list(range(0, num_devices - size + 1, size))
        if partner.get(name) in windows:
            firsts = [windows[partner[name]][0].first_device]
        firsts.sort(key=lambda first: (max(load[first : first + size]), first))
        share, more = divmod(copies[name], len(firsts))
        chosen = [Window(first, share + (i < more)) for i, first in enumerate(firsts) if share + (i < more)]
        windows[name] = tuple(chosen)
        for window in chosen:
            for device, each in enumerate(held[name], start=window.first_device):
                load[device] += window.num_copies * each.weights_bytes
    return windows
