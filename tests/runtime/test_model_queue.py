"""How a prompt is cut into steps, against all ways to cut it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SEQUENCE, decoder

from plait.compiler.bundle.manifest import ModelEntry
from plait.compiler.configuration import Configuration
from plait.runtime.model_queue import ModelQueue


def with_chunks(seconds: dict[int, float]) -> ModelEntry:
    """A decoder whose prefill steps have these tokens and take these times."""
    entry = decoder()
    like = entry.programs[0]
    prefills = [
        replace(like, configuration=Configuration("prefill", 1, size, SEQUENCE), step_seconds=time)
        for size, time in seconds.items()
    ]
    rest = [program for program in entry.programs if program.configuration.phase != "prefill"]
    return replace(entry, programs=(*prefills, *rest))


def least_seconds(seconds: dict[int, float], num_tokens: int) -> float:
    if num_tokens <= 0:
        return 0.0
    return min(time + least_seconds(seconds, num_tokens - size) for size, time in seconds.items())


chunks = st.dictionaries(st.sampled_from((2, 4, 8, 16)), st.floats(0.001, 1.0), min_size=1)


@given(chunks, st.integers(1, 20))
def test_a_prompt_is_cut_so_that_its_steps_take_the_least_time(seconds: dict[int, float], num_tokens: int) -> None:
    # A larger step never takes less than a smaller one.
    seconds = {size: max(time for other, time in seconds.items() if other <= size) for size in seconds}
    queue, left, spent = ModelQueue.of(with_chunks(seconds), kv_bytes_per_s=None), min(num_tokens, max(seconds)), 0.0
    least = least_seconds(seconds, left)
    while left > 0:
        chunk = queue.next_chunk(left)
        spent += seconds[chunk.new_tokens]
        left -= chunk.new_tokens
    assert spent <= least + 1e-9


def test_a_little_more_than_a_step_is_two_steps_and_much_more_is_a_larger_one() -> None:
    queue = ModelQueue.of(with_chunks({16: 0.02, 256: 0.11, 512: 0.2}), kv_bytes_per_s=None)
    chosen = {num: queue.next_chunk(num).new_tokens for num in (1, 16, 17, 80, 260, 300, 400, 512, 5000)}
    assert chosen == {1: 16, 16: 16, 17: 16, 80: 16, 260: 256, 300: 256, 400: 512, 512: 512, 5000: 512}
