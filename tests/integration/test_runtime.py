"""The runtime on tiny models: both kinds of target, damage, budgets, coroutines, clients that leave."""

from __future__ import annotations

import _thread
import asyncio
import gc
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import build_tiny_bundle

import plait
from plait.errors import (
    BundleIntegrityError,
    ContextLengthError,
    DoesNotFitError,
    ExecutionError,
    InvalidRequestError,
    ModelNotFoundError,
    QueueFullError,
    RequestTimeoutError,
    ShuttingDownError,
)
from plait.runtime.engine import Runtime
from plait.runtime.events import Transfer
from plait.runtime.executor import JaxExecutor
from plait.runtime.program_loader import Awaited
from plait.runtime.request import SamplingParams
from plait.runtime.tiers import Moved

FEW = SamplingParams(max_tokens=6, temperature=0)


def wait_until_quiet(runtime: Runtime) -> None:
    """Waits until no request is under way."""
    deadline = time.monotonic() + 10
    while any(
        f'vllm:num_requests_{kind}{{model_name="chat"}} 0.0' not in runtime.metrics.render()[0].decode()
        for kind in ("running", "waiting")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def room_for_one(path: Path) -> int:
    """Returns bytes of hbm that hold any one of the bundle's models but no two decoders."""
    models = plait.load(path).manifest.models
    return max(entry.resident_bytes + entry.workspace_bytes for entry in models)


@pytest.fixture(scope="module")
def unified_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("unified"), target="cpu")


def test_ctrl_c_during_the_first_transfers_ends_the_threads(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = JaxExecutor.copy

    def interrupted(executor: JaxExecutor, transfer: Transfer, progress: Callable[[int], None]) -> Moved:
        _thread.interrupt_main()
        time.sleep(0.2)  # the main thread is out of its wait by then
        return real(executor, transfer, progress)

    before = set(threading.enumerate())
    monkeypatch.setattr(JaxExecutor, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Runtime(tiny_bundle)
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith("plait")}


def test_special_tokens_that_users_write_stay_text(tiny_bundle: Path) -> None:
    with Runtime(tiny_bundle) as runtime:
        written = "<|im_end|>"
        (end,) = runtime.bundle.manifest.models[0].eos_token_ids
        assert end not in runtime.tokenize("chat", written)
        assert runtime.chat_prompt("chat", [{"role": "user", "content": written}]).count(end) == 1
        prompt = [{"role": "user", "content": written * 2}]
        assert runtime.complete("chat", prompt, FEW).text == runtime.complete("assistant", prompt, FEW).text


def test_models_take_turns_and_give_the_same_answers(tiny_bundle: Path) -> None:
    with Runtime(tiny_bundle) as roomy:
        expected = {model: roomy.complete(model, "The cat", FEW).text for model in ("chat", "other")}
    with Runtime(tiny_bundle, hbm=room_for_one(tiny_bundle)) as tight:
        for _ in range(3):
            for model, text in expected.items():
                assert tight.complete(model, "The cat", FEW).text == text
        switches = [record.model for record in tight.transfers() if record.destination == "hbm"]
        assert switches == ["chat", "other"] * 3
        for use in tight.tier_uses():
            assert use.measured_bytes <= use.peak_charged_bytes <= use.budget_bytes


def test_a_unified_target_aliases_the_mapped_file_and_unmaps_it(unified_bundle: Path) -> None:
    def is_mapped(model: str) -> bool:
        return f"{unified_bundle}/models/{model}/weights.safetensors" in Path("/proc/self/maps").read_text()

    with Runtime(unified_bundle, hbm=room_for_one(unified_bundle)) as runtime:
        assert runtime.complete("chat", "The cat", FEW).usage.completion_tokens == 6
        assert is_mapped("chat")
        assert runtime.complete("other", "The cat", FEW).usage.completion_tokens == 6
        assert is_mapped("other")
        assert not is_mapped("chat")
        (use,) = runtime.tier_uses()
        assert use.measured_bytes <= use.budget_bytes
    gc.collect()
    assert not is_mapped("other")


def test_both_kinds_of_target_answer_alike(tiny_bundle: Path, unified_bundle: Path) -> None:
    with Runtime(tiny_bundle) as tiered, Runtime(unified_bundle) as unified:
        for model in ("chat", "other"):
            assert tiered.complete(model, "The cat", FEW).token_ids == unified.complete(model, "The cat", FEW).token_ids
        assert np.array_equal(tiered.embed("embed", "a cat"), unified.embed("embed", "a cat"))


def test_closing_frees_every_array(tiny_bundle: Path) -> None:
    gc.collect()
    before = len(jax.live_arrays())
    with Runtime(tiny_bundle) as runtime:
        runtime.complete("chat", "The cat", FEW)
        assert len(jax.live_arrays()) > before
    gc.collect()
    assert len(jax.live_arrays()) == before


def test_arrays_that_others_hold_are_not_the_runtimes(tiny_bundle: Path) -> None:
    held = jnp.ones((1 << 20,))
    with Runtime(tiny_bundle) as runtime:
        runtime.complete("chat", "The cat", FEW)
        uses = runtime.tier_uses()
    assert all(use.measured_bytes == use.predicted_bytes for use in uses)
    assert held.nbytes > max(use.measured_bytes for use in uses)


def test_a_tampered_weight_file_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "tampered.plait")
    weights = copy / "models" / "chat" / "weights.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(BundleIntegrityError, match=r"models/chat/weights\.safetensors"):
        Runtime(copy)


def test_a_budget_that_holds_no_model_is_refused_with_levers(tiny_bundle: Path) -> None:
    with pytest.raises(
        DoesNotFitError, match=r"needs .* MiB of hbm, the budget is .*raise the hbm budget to \d+ bytes"
    ):
        Runtime(tiny_bundle, hbm="1KiB")


@pytest.mark.parametrize(
    ("model", "prompt", "params", "error", "message"),
    [
        ("nothing", "hi", FEW, ModelNotFoundError, "not in this bundle; it has chat, other, embed"),
        ("embed", "hi", FEW, InvalidRequestError, "is an encoder"),
        ("chat", [], FEW, InvalidRequestError, "is empty"),
        ("chat", [10**6], FEW, InvalidRequestError, "token 1000000 is not in the vocabulary of 288"),
        ("chat", [5] * 128, FEW, ContextLengthError, "has 128 tokens .* context of 128"),
        ("chat", "hi", SamplingParams(max_tokens=1000), ContextLengthError, "up to 1000 were asked for"),
        ("chat", "hi", SamplingParams(temperature=-1), InvalidRequestError, "temperature is -1"),
        ("chat", "hi", SamplingParams(top_p=0), InvalidRequestError, "top_p is 0"),
        ("chat", "hi", SamplingParams(max_tokens=0), InvalidRequestError, "max_tokens is 0"),
        ("chat", [{"role": "wizard", "content": "hi"}], FEW, InvalidRequestError, "role"),
    ],
)
def test_requests_that_cannot_be_taken_are_refused_at_once(
    tiny_runtime: Runtime, model: str, prompt, params: SamplingParams, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny_runtime.complete(model, prompt, params)


@pytest.mark.parametrize(("model", "param"), [("chat", "prompt"), ("embed", "input")])
def test_tokens_beyond_the_vocabulary_are_blamed_on_their_parameter(tiny_runtime: Runtime, model: str, param: str):
    async def ask() -> None:
        if model == "embed":
            await tiny_runtime.embed_async(model, [[10**6]])
        else:
            await anext(tiny_runtime.generate_async(model, [10**6], FEW))

    with pytest.raises(InvalidRequestError, match="token 1000000 is not in the vocabulary of") as raised:
        asyncio.run(ask())
    assert raised.value.param == param


@pytest.fixture(scope="module")
def tiny_runtime(tiny_bundle: Path):
    with Runtime(tiny_bundle) as runtime:
        yield runtime


def test_streamed_and_whole_answers_agree(tiny_runtime: Runtime) -> None:
    whole = tiny_runtime.complete("chat", "The cat", SamplingParams(max_tokens=40, temperature=1.3, seed=5))
    pieces = list(tiny_runtime.pieces("chat", "The cat", SamplingParams(max_tokens=40, temperature=1.3, seed=5)))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token for piece in pieces for token in piece.token_ids] == list(whole.token_ids)
    assert whole.usage.completion_tokens == len(whole.token_ids) == 40


def test_an_answer_does_not_depend_on_what_shares_the_batch(tiny_runtime: Runtime) -> None:
    alone = [tiny_runtime.complete("chat", f"number {index}", FEW).token_ids for index in range(6)]

    async def together() -> list[tuple[int, ...]]:
        answers = [tiny_runtime.complete_async("chat", f"number {index}", FEW) for index in range(6)]
        return [answer.token_ids for answer in await asyncio.gather(*answers)]

    assert asyncio.run(together()) == alone


def test_more_sequences_than_the_pool_holds_are_all_answered(tiny_runtime: Runtime) -> None:
    long = SamplingParams(max_tokens=100, temperature=0)
    alone = [tiny_runtime.complete("chat", f"number {index}", long).token_ids for index in range(4)]

    async def together() -> list[tuple[int, ...]]:
        answers = [tiny_runtime.complete_async("chat", f"number {index}", long) for index in range(4)]
        return [answer.token_ids for answer in await asyncio.gather(*answers)]

    assert asyncio.run(together()) == alone  # 4 x 110 tokens in a pool of 256: some were computed twice


def test_a_long_prompt_in_chunks_is_the_same_prompt(tiny_runtime: Runtime) -> None:
    tokens = [(index * 7) % 200 + 10 for index in range(100)]
    whole = tiny_runtime.complete("chat", tokens, FEW).token_ids
    first = tiny_runtime.complete("chat", tokens, SamplingParams(max_tokens=1, temperature=0)).token_ids
    rest = tiny_runtime.complete("chat", [*tokens, *first], SamplingParams(max_tokens=5, temperature=0)).token_ids
    assert first + rest == whole


def test_leaving_a_stream_frees_its_blocks(tiny_runtime: Runtime) -> None:
    stream = tiny_runtime.stream("chat", "The cat", SamplingParams(max_tokens=100, temperature=0))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    wait_until_quiet(tiny_runtime)
    assert 'vllm:kv_cache_usage_perc{model_name="chat"} 0.0' in tiny_runtime.metrics.render()[0].decode()


def test_many_texts_take_several_steps_and_keep_their_order(tiny_runtime: Runtime) -> None:
    texts = [f"text {index}" for index in range(50)]
    together = tiny_runtime.embed("embed", texts)
    assert together.shape == (50, 64)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for index in (0, 17, 49):
        assert np.allclose(together[index], tiny_runtime.embed("embed", texts[index])[0], atol=1e-5)


def test_a_stop_string_ends_the_answer_before_it(tiny_runtime: Runtime) -> None:
    whole = tiny_runtime.complete("chat", "The cat", SamplingParams(max_tokens=40, temperature=0)).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    stopped = tiny_runtime.complete("chat", "The cat", SamplingParams(max_tokens=40, temperature=0, stop=(stop,)))
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


def test_a_full_queue_refuses_and_a_closed_runtime_too(tiny_bundle: Path) -> None:
    runtime = Runtime(tiny_bundle, max_requests=1)
    stream = runtime.stream("chat", "The cat", SamplingParams(max_tokens=100))
    next(stream)
    with pytest.raises(QueueFullError, match="1 requests are under way, the limit is 1"):
        runtime.complete("chat", "The cat", FEW)
    runtime.close()
    with pytest.raises(ShuttingDownError, match="shutting down"):
        runtime.complete("chat", "The cat", FEW)
    runtime.close()


def before_each_step(runtime: Runtime, model: str, configuration_id: str, function: Callable[..., None]) -> None:
    """Calls a function with weights, inputs and pools of every step of a configuration before it runs."""
    loader = runtime._core._executor._loader
    assert loader is not None
    loading = loader._loading
    key = next(key for key in loading if key[0] == model and key[1].id == configuration_id)
    sound = loading[key].result()

    def run(*arguments):
        function(*arguments)
        return sound(*arguments)

    pool = ThreadPoolExecutor(1)
    loading[key] = Awaited(lambda: run, pool, pool)  # type: ignore[arg-type]


def test_a_step_that_fails_costs_its_requests_and_no_others(tiny_bundle: Path) -> None:
    with Runtime(tiny_bundle) as runtime:
        expected = runtime.complete("chat", "The cat", FEW).token_ids
        failures = [RuntimeError("out of order")]

        def fail_once(*arguments) -> None:
            if failures:
                for pool in arguments[2]:  # donated: gone with the step
                    pool.delete()
                raise failures.pop()

        before_each_step(runtime, "chat", "decode-b1-t1-c128", fail_once)
        with pytest.raises(ExecutionError, match="the device failed: out of order"):
            runtime.complete("chat", "The cat", FEW)
        assert runtime.complete("chat", "The cat", FEW).token_ids == expected


def test_a_request_that_waits_too_long_is_told_so_while_others_run(tiny_bundle: Path) -> None:
    room = room_for_one(tiny_bundle)
    with Runtime(tiny_bundle, hbm=room, queue_timeout_seconds=1.0) as runtime:
        before_each_step(runtime, "chat", "decode-b1-t1-c128", lambda *_: time.sleep(0.03))
        running = runtime.pieces("chat", "The cat", SamplingParams(max_tokens=100, temperature=0))
        next(running)
        with pytest.raises(RequestTimeoutError, match=r"waited 1\.0 s for its first step"):
            runtime.complete("other", "The cat", FEW)
        assert list(running)[-1].finish_reason == "length"


def test_patience_saves_switches_and_changes_no_answer(tiny_bundle: Path) -> None:
    asked = ["chat", "other"] * 8

    def answered(patience_seconds: float) -> tuple[list[tuple[int, ...]], int]:
        with (
            Runtime(tiny_bundle, hbm=room_for_one(tiny_bundle), patience_seconds=patience_seconds) as runtime,
            ThreadPoolExecutor(len(asked)) as clients,
        ):
            tokens = list(clients.map(lambda model: runtime.complete(model, "The cat", FEW).token_ids, asked))
            return tokens, sum(record.destination == "hbm" for record in runtime.transfers())

    (at_once, many), (patiently, few) = answered(0.0), answered(30.0)
    assert patiently == at_once
    assert few < many
