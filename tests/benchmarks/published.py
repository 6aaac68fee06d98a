"""What was published of RDUs and of the GPUs beside them, and what plait's planner says instead.

Each row has an id, what it is, the published figure, ours, and within what it has to be. Sources: arXiv 2405.07518
(SN40L, MICRO 2024), Hot Chips 2024 and 2026, LLM-Inference-Bench (Argonne). Constants are those of the target files,
the same for all rows, each with its source. What a publication leaves out is a constant here, and assumed.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from plait.compiler.configuration import Configuration
from plait.compiler.fuse import Mode, Sections, fuse
from plait.compiler.fuse.rules import FusionRule, PatternStep
from plait.compiler.fuse.sections import Orchestration
from plait.compiler.mesh import Mesh
from plait.compiler.partition.result import Partition
from plait.compiler.partition.search import partition
from plait.compiler.partition.skeleton import Skeleton, skeleton
from plait.compiler.simulate import RequestTime, simulate_request
from plait.compiler.subject import read_subject
from plait.compiler.target import Target, load_target
from plait.compiler.trace import trace, trace_model
from plait.compiler.train import Training, trace_training
from plait.errors import DoesNotFitError
from plait.models.config import DecoderConfig

__all__ = ["MEASURED", "Row"]

MEASURED = Path(__file__).parents[3] / "shared" / "data" / "rdu" / "sn40l8_llama3_8b.csv"
OTHERS = Path(__file__).with_name("sn40l8_other_models.csv")  # LLM-Inference-Bench, Plots/Fig_18
STEP_TOKENS = 65_536  # assumed, of prefill and train: the paper does not say how many sequences a step has
R1_BATCH = 16  # assumed: nor do the talk's tokens a second of a user say how many users there are
COE_PROMPT = 1024  # tokens, assumed
ROUTER_TOKENS = 10  # assumed: the router is a 7B model that writes the name of its choice
NUM_EXPERTS = 150
EXPERT_BYTES = 13.48e9  # of Llama 2 7B in bf16
MONARCH = (1024, 128)  # assumed: side of the square between the products, and what they sum over
LEVELS = ("nothing fused", "Gemm0-Mul-Transpose fused", "all fused")
INTENSITIES = (39.5, 102.6, 410.4)
FFT_SIZES, FFT_CHANNELS = (128, 128, 64), 64  # 1M points in three factors, as FlashFFTConv takes them

# (model, phase, tokens) of the paper's benchmarks on 8 sockets
BENCHMARKS = (
    ("llama-2-7b", "prefill", 4096),
    ("llama-2-7b", "decode", 4096),
    ("llama-2-7b", "train", 4096),
    ("llama-2-13b", "train", 2048),  # published: sparseGPT 13B, 87.5 % of its weights 0; here they are all there
    ("llama-2-70b", "prefill", 4096),
    ("llama-2-70b", "decode", 4096),
    ("bloom-176b", "prefill", 8192),
    ("bloom-176b", "decode", 8192),
    ("mistral-7b", "prefill", 2048),
    ("mistral-7b", "prefill", 4096),
    ("mistral-7b", "decode", 2048),
    ("mistral-7b", "decode", 4096),
    ("falcon-40b", "prefill", 2048),
    ("falcon-40b", "decode", 2048),
    ("llava-1.5-7b", "prefill", 4096),
    ("llava-1.5-7b", "decode", 4096),
)


@dataclass(frozen=True)
class Row:
    """A published figure and ours."""

    id: str
    what: str
    published: str
    ours: float
    least: float
    most: float

    @property
    def is_inside(self) -> bool:
        """Whether ours is where it has to be."""
        return self.least <= self.ours <= self.most

    @property
    def error(self) -> float:
        """How far ours is outside of what is allowed around the published figure, or from its middle."""
        middle = (self.least + self.most) / 2
        return self.ours / middle - 1

    def as_text(self) -> str:
        """Returns a line of the table."""
        bar = f"{self.least:.4g} to {self.most:.4g}"
        figures = f"{self.published:>10} {self.ours:>8.4g} {bar:>18} {self.error:>+7.1%}"
        return f"{self.id:<5} {self.what:<58} {figures} {'ok' if self.is_inside else 'OUTSIDE'}"


def around(id_: str, what: str, published: float, ours: float, share: float) -> Row:
    """Returns the row of a figure that has to be met within a share."""
    return Row(id_, what, f"{published:g}", ours, published * (1 - share), published * (1 + share))


def config_of(name: str, *, positions: int = 0) -> tuple[DecoderConfig, str]:
    """Returns a model of the zoo and its type; ALiBi models go beyond the positions that they were published with."""
    subject = read_subject(name, base=Path())
    assert isinstance(subject.config, DecoderConfig)
    return replace(subject.config, max_positions=max(subject.config.max_positions, positions)), subject.dtype


@functools.cache
def planned(model: str, phase: str, tokens: int, target: str) -> tuple[Skeleton, Partition, Target, str]:
    """Returns a step of a benchmark, partitioned."""
    batch = 1 if phase == "decode" else STEP_TOKENS // tokens
    while batch > 1:
        try:
            return planned_batch(model, phase, tokens, target, batch)
        except DoesNotFitError:
            batch //= 2  # as many as fit
    return planned_batch(model, phase, tokens, target, batch)


def planned_batch(
    model: str, phase: str, tokens: int, target: str, batch: int
) -> tuple[Skeleton, Partition, Target, str]:
    """Returns a step of so many sequences, partitioned."""
    config, dtype = config_of(model, positions=tokens)
    machine = load_target(target)
    if phase == "train":
        shapes = Configuration("train", batch, tokens, tokens)
        traced = trace_training(config, shapes, dtype, Training(rematerializes=True))
    else:
        assert phase in ("prefill", "decode")
        shapes = Configuration(phase, batch, 1 if phase == "decode" else tokens, tokens)
        traced = trace_model(config, shapes, dtype)
    capacity = machine.tiers["hbm"].usable_bytes
    plan = partition(traced, machine, dtype=dtype, num_devices=machine.num_devices, num_stages=1, budget_bytes=capacity)
    return skeleton(traced), plan, machine, dtype


@functools.cache
def fused(model: str, phase: str, tokens: int, mode: Mode, orchestration: Orchestration) -> Sections:
    """Returns the sections of a benchmark on 8 sockets."""
    bones, plan, machine, dtype = planned(model, phase, tokens, "sn40l-8")
    return fuse(bones, plan.sharding, machine, dtype, mode=mode, orchestration=orchestration)


def benchmarks() -> Iterator[Row]:
    """V5, V6 and V7: fusion, orchestration and launches over the paper's benchmarks."""
    for model, phase, tokens in BENCHMARKS:
        unfused, whole = (fused(model, phase, tokens, mode, "hardware") for mode in ("o0", "o3"))
        name = f"{model} {tokens} {phase}"
        least, most = (1.0, 13.0) if phase == "decode" else (1.5, 3.0)
        yield Row(
            "V5", f"fused over unfused: {name}", f"{least:g}-{most:g}x", unfused.seconds / whole.seconds, least, most
        )
        extra = software_seconds(whole, load_target("sn40l-8")) / whole.seconds
        least, most = (1.4, 8.0) if phase == "decode" else (1.0, 1.1)
        yield Row("V6", f"hardware over software launches: {name}", f"{least:g}-{most:g}x", 1 + extra, least, most)
    yield launches()
    bones, plan, machine = convolution(*FFT_SIZES)
    speeds = [fuse(bones, plan.sharding, machine, "bfloat16", mode=mode).seconds for mode in ("o0", "o3")]
    yield around("V5", "fused over unfused: FlashFFTConv of 1M points, 1 socket", 13, speeds[0] / speeds[1], 0.10)


def launches() -> Row:
    """V7: of a prefill of one sequence; with more of them a step is cut into more kernels."""
    bones, plan, machine, dtype = planned_batch("llama-2-7b", "prefill", 4096, "sn40l-8", 1)
    counts = [fuse(bones, plan.sharding, machine, dtype, mode=mode).num_kernels for mode in ("o0", "o3")]
    return around("V7", "launches, unfused over fused: llama-2-7b 4096 prefill", 11, counts[0] / counts[1], 0.05)


def intensities() -> Iterator[Row]:
    """V4: FLOPs a byte of Gemm0-Mul-Transpose-Gemm1, at three levels of fusion.

    The shapes of the publication's example are not in its text. Two thin products around a square of 1024, multiplied
    by a column, give two of its figures; no shapes give all three (`test_no_shapes_have_the_three_intensities`).
    """
    side, inner = MONARCH
    wide, tall, column = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((side, inner), (inner, side), (side, 1)))

    def monarch(first, factors, second, x):
        return ((first @ x) * factors).T @ second

    kinds = ("parameter", "parameter", "parameter", "input")
    traced = trace(monarch, wide, column, wide, tall, argument_kinds=kinds)
    target = load_target("sn40l")
    plan = partition(traced, target, dtype="bfloat16", mesh=Mesh((), ()))
    chain = ("dot_general", "mul", "transpose", "dot_general")
    for name, length, published in zip(LEVELS, (1, 3, 4), INTENSITIES, strict=True):
        steps = {str(place): PatternStep((op,)) for place, op in enumerate(chain[:length])}
        rule = FusionRule(pattern=steps)
        found = fuse(skeleton(traced), plan.sharding, target, "bfloat16", mode="o1", rules=(rule,))
        yield around("V4", f"FLOPs a byte of a Monarch step, {name}", published, found.intensity, 0.01)


def software_seconds(sections: Sections, target: Target) -> float:
    """What the host's launches of the same kernels take more."""
    assert target.compute.software_launch_seconds is not None
    return sections.num_kernels * (target.compute.software_launch_seconds - target.compute.launch_seconds)


def convolution(*sizes: int) -> tuple[Skeleton, Partition, Target]:
    """Returns a long convolution by a Monarch-factored FFT, forward and back, on one socket."""
    num_points = math.prod(sizes)

    def transform(x, matrices, twiddles):
        for matrix, twiddle in zip(matrices, twiddles, strict=True):
            x = jnp.einsum("ab,hbc->hca", matrix, x.reshape(x.shape[0], matrix.shape[0], -1))
            x = x if twiddle is None else x * twiddle
        return x

    def convolve(matrices, twiddles, filters, signal):
        spectrum = transform(signal, matrices, twiddles).reshape(signal.shape) * filters
        return transform(spectrum, matrices, twiddles).real

    matrices = [jax.ShapeDtypeStruct((size, size), jnp.complex64) for size in sizes]
    twiddles = [jax.ShapeDtypeStruct((num_points // size, size), jnp.complex64) for size in sizes[:-1]]
    filters = jax.ShapeDtypeStruct((FFT_CHANNELS, num_points), jnp.complex64)
    signal = jax.ShapeDtypeStruct((FFT_CHANNELS, num_points), jnp.float32)
    kinds = ("parameter", "parameter", "parameter", "input")
    traced = trace(convolve, matrices, [*twiddles, None], filters, signal, argument_kinds=kinds)
    target = load_target("sn40l")
    return skeleton(traced), partition(traced, target, dtype="bfloat16", mesh=Mesh((), ())), target


def request(model: str, target: str, tokens: int, output: int, batch: int = 1) -> RequestTime:
    """Returns what a request takes."""
    config, dtype = config_of(model)
    return simulate_request(
        config, load_target(target), name=model, dtype=dtype, input_tokens=tokens, output_tokens=output, batch=batch
    )


def speeds() -> Iterator[Row]:
    """V9 and V17: tokens a second of a user."""
    found = request("llama-3.1-8b", "sn40l-16", 8192, 256)
    yield around("V9", "llama-3.1-8b 8K, 16 sockets, tokens/s a user", 1042, found.output_tokens_per_s_per_user, 0.10)
    for sockets, published in ((64, 200), (128, 300), (256, 500)):
        found = request("deepseek-r1", f"sn50-{sockets}", 8192, 1024, R1_BATCH)
        what = f"deepseek-r1 8K/1K, {sockets} SN50 sockets, tokens/s a user"
        yield around("V17", what, published, found.output_tokens_per_s_per_user, 0.35)


def switch_seconds(num_bytes: float, target: Target) -> float:
    """What copying a model's weights into HBM takes, each device its part."""
    link = target.link("ddr", "hbm")
    return link.latency_seconds + num_bytes / target.num_devices / link.bandwidth_bytes_per_s


def switches() -> Iterator[Row]:
    """V10 and V11: a switch."""
    seconds = {name: switch_seconds(EXPERT_BYTES, load_target(name)) for name in ("sn40l-8", "a100-8", "h100-8")}
    yield around("V10", "switch of llama-2-7b, 8 sockets, ms", 13.5, seconds["sn40l-8"] * 1e3, 0.10)
    yield around("V10", "the same, over DGX A100", 31, seconds["a100-8"] / seconds["sn40l-8"], 0.10)
    yield around("V10", "the same, over DGX H100", 15, seconds["h100-8"] / seconds["sn40l-8"], 0.10)
    yield around(
        "V11",
        "switch of llama-3.1-8b, 16 sockets, ms",
        10,
        switch_seconds(16.06e9, load_target("sn40l-16")) * 1e3,
        0.10,
    )


@functools.cache
def coe_expert(target: str, tokens: int) -> float:
    """Seconds of one expert's answer, hot."""
    return request("llama-2-7b", target, COE_PROMPT, tokens).latency_seconds


def coe(target: str, batch: int, tokens: int) -> float:
    """Seconds of a batch of prompts, each for another expert: router, then switch and answer one by one.

    As many experts as HBM holds are there with the router; the others are copied when they are asked for.
    """
    machine = load_target(target)
    num_hot = machine.num_devices * machine.tiers["hbm"].usable_bytes / EXPERT_BYTES - 1
    miss = 1 - min(1.0, num_hot / NUM_EXPERTS)
    router = request("llama-2-7b", target, COE_PROMPT, ROUTER_TOKENS, batch).latency_seconds
    return router + batch * (miss * switch_seconds(EXPERT_BYTES, machine) + coe_expert(target, tokens))


def composition() -> Iterator[Row]:
    """V13 and V13b: a composition of 150 experts beside DGX nodes."""
    published = {(8, 20): (6.6, 3.7), (1, 20): (4.8, 2.8), (8, 200): (4.2, 2.7), (1, 200): (3.9, 2.6)}
    for place, name in enumerate(("a100-8", "h100-8")):
        for (batch, tokens), figures in published.items():
            ratio = coe(name, batch, tokens) / coe("sn40l-8", batch, tokens)
            yield around("V13", f"Samba-CoE batch {batch}, {tokens} tokens, over {name}", figures[place], ratio, 0.40)
        for tokens, figures in ((20, (2.0, 1.5)), (200, (3.2, 2.3))):
            ratio = coe_expert(name, tokens) / coe_expert("sn40l-8", tokens)
            yield around("V13b", f"an expert, {tokens} tokens, over {name}", figures[place], ratio, 0.40)


def llama_3_8b() -> Iterator[Row]:
    """V16: measured latencies of Llama 3 8B on 8 sockets."""
    with MEASURED.open() as file:
        for row in csv.DictReader(file):
            tokens, batch = int(row["Input Output Length"]), int(row["Batch Size"])
            found = request("llama-3-8b", "sn40l-8", tokens, tokens, batch)
            what = f"llama-3-8b {tokens}+{tokens} tokens, batch {batch}, s"
            yield around("V16", what, float(row["Latency"]), found.latency_seconds, 0.10 if batch == 1 else 0.25)


def other_models() -> Iterator[Row]:
    """V16 of models that no constant was derived from.

    As many tokens come out as go in. Some rows contradict each other, and no bar is held to them: half the tokens of
    Llama 3 70B at batch 16 took 0.88 times as long, and Llama 2 7B at batch 1 longer than Llama 3 8B, which is larger.
    """
    with OTHERS.open() as file:
        for row in csv.DictReader(file):
            tokens, batch = int(row["tokens"]), int(row["batch"])
            found = request(row["model"], "sn40l-8", tokens, tokens, batch)
            what = f"{row['model']} {tokens}+{tokens} tokens, batch {batch}, s"
            yield around("V16", what, float(row["seconds"]), found.latency_seconds, 0.10 if batch == 1 else 0.25)


def throughputs() -> Iterator[Row]:
    """V14: experts on a node."""
    machine = load_target("sn40l-8")
    fits = machine.num_devices * machine.tiers["ddr"].usable_bytes // EXPERT_BYTES
    raw = machine.num_devices * machine.tiers["ddr"].capacity_bytes / EXPERT_BYTES
    yield Row("V14", "experts of llama-2-7b on a node of 8 sockets", "850", fits, 850, raw)
    dgx = load_target("h100-8")
    a_node = dgx.num_devices * dgx.tiers["hbm"].usable_bytes // EXPERT_BYTES
    yield around("V14", "DGX nodes that hold as many in HBM", 19, math.ceil(fits / a_node), 0.0)
