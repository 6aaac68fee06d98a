"""Work of one call that several of XLA's threads do: whoever comes takes the next unit until there is none.

The thread that was called takes part, so nothing waits for a thread that may never come. One that comes late finds no
unit, and a job is freed by the last who looks at it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .call_frame import api_at, frame_at
from .memory import allocate, call, fetch_and_add, free, load_int64, load_shared, record_reader

__all__ = ["SHARED_FIELDS", "share", "taking_part"]

SHARED_FIELDS = [("next_unit", "i8"), ("num_done", "i8"), ("num_holders", "i8"), ("num_units", "i8")]  # begin a job
_DONE, _HOLDERS = 8, 16  # offsets of these

_job_at = record_reader(np.dtype(SHARED_FIELDS))
_request_at = record_reader(
    np.dtype([("size", "i8"), ("extension", "i8"), ("context", "i8"), ("first", "i8"), ("second", "i8")])
)
_REQUEST_BYTES, _ANSWER = 48, 40  # a word for an answer is behind it


@njit(nogil=True)
def _leave(job):
    if fetch_and_add(job + _HOLDERS, -1) == 1:
        free(job)


@njit(nogil=True)
def _num_helpers(frame, request_address, num_units):
    """Returns how many of XLA's threads there is work for besides this one."""
    request = _request_at(request_address)
    request.size, request.extension, request.context = 32, 0, frame_at(frame).context
    request.first = request_address + _ANSWER
    if call(api_at(frame_at(frame).api).num_threads, request_address):
        return 0
    return max(0, min(load_int64(request_address + _ANSWER), num_units) - 1)


@njit(nogil=True)
def _ask_for_help(frame, job, part):
    """Has other threads take part in a job."""
    request_address = allocate(_REQUEST_BYTES)
    helpers = _num_helpers(frame, request_address, _job_at(job).num_units)
    fetch_and_add(job + _HOLDERS, helpers)
    request = _request_at(request_address)
    request.size, request.extension, request.context = 40, 0, frame_at(frame).context
    request.first, request.second = part, job
    for _ in range(helpers):
        if call(api_at(frame_at(frame).api).schedule, request_address):
            fetch_and_add(job + _HOLDERS, -1)
    free(request_address)


def taking_part(do_unit: Any, scratch_bytes: Any) -> Any:
    """Makes the function of each thread: it takes the address of a job, does units of it, and returns 0.

    Args:
        do_unit: Compiled; takes the job, the number of a unit and the address of scratch memory.
        scratch_bytes: Compiled; takes the job and returns how much scratch memory one thread needs.
    """

    @njit(nogil=True)
    def take_part(job):
        unit = fetch_and_add(job, 1)
        if unit < _job_at(job).num_units:
            scratch = allocate(scratch_bytes(job))
            while unit < _job_at(job).num_units:
                do_unit(job, unit, scratch)
                fetch_and_add(job + _DONE, 1)
                unit = fetch_and_add(job, 1)
            free(scratch)
        _leave(job)
        return 0

    return take_part


@njit(nogil=True)
def share(frame, job, part):
    """Has all units of a job done, and frees it.

    Args:
        frame: Of the call.
        job: Allocated and filled in, but for the shared fields other than `num_units`.
        part: Address of the code that `taking_part` made.
    """
    record = _job_at(job)
    record.next_unit, record.num_done, record.num_holders = 0, 0, 2  # this function, and the part that it takes
    if record.num_units > 1:
        _ask_for_help(frame, job, part)
    call(part, job)
    while load_shared(job + _DONE) < record.num_units:
        pass
    _leave(job)
