"""The zoo against closed forms: each is written here from the papers, as the list of a model's matrices, and shares
nothing with `plait.models` but the published config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from plait.compiler.configuration import Configuration
from plait.compiler.subject import model_sizes
from plait.compiler.trace import trace_model
from plait.errors import ConfigurationError
from plait.models.checkpoint.hf_config import config_from_huggingface
from plait.models.zoo import catalog

WANTED = (
    *("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-2-7b", "mistral-7b", "mixtral-8x7b", "qwen3-30b-a3b"),
    *("qwen3-235b-a22b", "gpt-oss-20b", "gpt-oss-120b", "deepseek-r1", "bloom-176b", "falcon-40b", "llava-1.5-7b"),
)
TOLERANCE = 1e-3
every_entry = pytest.mark.parametrize("name", catalog.names())


@dataclass(frozen=True)
class Matrix:
    """Equal matrices of a model."""

    rows: int
    columns: int
    copies: int
    used: int | None = None  # by each token; all of them by default
    form: str = "bf16"

    @property
    def numbers(self) -> int:
        return self.rows * self.columns * self.copies

    @property
    def products(self) -> int:
        """Multiply-adds of one token."""
        return self.rows * self.columns * (self.copies if self.used is None else self.used)

    @property
    def bytes(self) -> int:
        if self.form == "fp8":  # one f32 scale a block of 128 x 128
            return self.numbers + 4 * self.copies * math.ceil(self.rows / 128) * math.ceil(self.columns / 128)
        if self.form == "mxfp4":  # 4 bits a number, and one byte of scale for 32
            return self.numbers // 2 + self.numbers // 32
        return 2 * self.numbers


@dataclass(frozen=True)
class ClosedForm:
    """What the formulas say of a model; attention of one token in a context, by layer."""

    matrices: list[Matrix]  # without embedding and head
    vectors: int  # numbers in norms, biases and sinks
    vocabulary: int
    hidden: int
    is_tied: bool
    cached_per_layer: int  # numbers that a token leaves
    layers: int
    decode_products: int  # multiply-adds of a position that a new token sees, by layer
    prefill_products: int
    window: int = 0
    sliding_layers: int = 0
    unused_vectors: int = 0  # of experts that a token does not go to

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        embeddings = self.head * (1 if self.is_tied else 2)
        return sum(matrix.numbers for matrix in self.matrices) + self.vectors + embeddings

    @property
    def active_parameters(self) -> int:
        unused = sum(matrix.numbers - matrix.products for matrix in self.matrices)
        return self.parameters - unused - self.unused_vectors

    @property
    def weight_bytes(self) -> int:
        embeddings = self.head * (1 if self.is_tied else 2)
        return sum(matrix.bytes for matrix in self.matrices) + 2 * (self.vectors + embeddings)

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.cached_per_layer

    def decode_flops(self, context: int) -> int:
        products = sum(matrix.products for matrix in self.matrices) + self.head
        seen = (self.layers - self.sliding_layers) * context + self.sliding_layers * min(context, self.window)
        return 2 * (products + self.decode_products * seen)

    def prefill_flops(self, context: int) -> float:
        """Of a token; every token is multiplied with every position, and the last of a sequence meets the head."""
        products = sum(matrix.products for matrix in self.matrices) + self.head / context
        return 2 * (products + self.prefill_products * self.layers * context)


def closed_form(fields: dict) -> ClosedForm:
    kinds = {
        "BloomForCausalLM": bloom,
        "FalconForCausalLM": falcon,
        "DeepseekV3ForCausalLM": deepseek,
        "LlavaForConditionalGeneration": lambda fields: llama(VICUNA_7B | fields["text_config"]),
        "Gemma3ForConditionalGeneration": lambda fields: llama(GEMMA_3 | fields["text_config"]),
    }
    return kinds.get(fields["architectures"][0], llama)(fields)


# What files leave out because it is the default of their family.
VICUNA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
GEMMA_3 = {"vocab_size": 262_208, "tie_word_embeddings": True, "sliding_window_pattern": 6}


def llama(fields: dict) -> ClosedForm:
    """Llama and its kin: grouped-query attention (2305.13245), gates (2002.05202), experts (2401.04088)."""
    kind, layers, hidden = fields["model_type"], fields["num_hidden_layers"], fields["hidden_size"]
    heads = fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads", heads)
    head = fields.get("head_dim", hidden // heads)
    query, kv = heads * head, kv_heads * head
    matrices = [Matrix(query, hidden, 2 * layers), Matrix(kv, hidden, 2 * layers)]
    vectors = (4 if kind.startswith("gemma") else 2) * hidden * layers + hidden
    if kind in ("qwen2", "gpt_oss"):
        vectors += layers * (query + 2 * kv)
    if kind in ("qwen3", "qwen3_moe", "gemma3_text"):
        vectors += layers * 2 * head
    num_experts = fields.get("num_experts", fields.get("num_local_experts"))
    if num_experts is None:
        matrices.append(Matrix(fields["intermediate_size"], hidden, 3 * layers))
    else:
        inner = fields.get("moe_intermediate_size", fields["intermediate_size"])
        used = 3 * layers * fields["num_experts_per_tok"]
        form = "mxfp4" if kind == "gpt_oss" else "bf16"
        matrices += [
            Matrix(num_experts, hidden, layers),
            Matrix(inner, hidden, 3 * layers * num_experts, used=used, form=form),
        ]
    unused = 0
    if kind == "gpt_oss":
        expert_biases = layers * (2 * fields["intermediate_size"] + hidden)
        vectors += layers * (hidden + heads + num_experts) + num_experts * expert_biases
        unused = (num_experts - fields["num_experts_per_tok"]) * expert_biases
    pattern = {"mistral": 0, "phi3": 0, "gpt_oss": 2, "gemma2": 2, "gemma3_text": 6}.get(kind)
    is_sliding = pattern is not None and fields.get("sliding_window") is not None
    return ClosedForm(
        matrices=matrices,
        vectors=vectors,
        vocabulary=fields["vocab_size"],
        hidden=hidden,
        is_tied=fields.get("tie_word_embeddings", kind.startswith("gemma")),
        cached_per_layer=2 * kv,
        layers=layers,
        decode_products=2 * query,
        prefill_products=2 * query,
        window=fields["sliding_window"] if is_sliding else 0,
        sliding_layers=(layers - (layers // pattern if pattern else 0)) if is_sliding else 0,
        unused_vectors=unused,
    )


def deepseek(fields: dict) -> ClosedForm:
    """DeepSeek-V3 (2412.19437): latent attention, a shared expert, FP8 in all products of the layers but the router."""
    layers, hidden, heads = fields["num_hidden_layers"], fields["hidden_size"], fields["num_attention_heads"]
    query_rank, latent, rope = fields["q_lora_rank"], fields["kv_lora_rank"], fields["qk_rope_head_dim"]
    nope, value = fields["qk_nope_head_dim"], fields["v_head_dim"]
    dense = fields["first_k_dense_replace"]
    sparse, experts, inner = layers - dense, fields["n_routed_experts"], fields["moe_intermediate_size"]

    def fp8(rows: int, columns: int, copies: int, used: int | None = None) -> Matrix:
        return Matrix(rows, columns, copies, used, "fp8")

    matrices = [
        fp8(query_rank, hidden, layers),
        fp8(heads * (nope + rope), query_rank, layers),
        fp8(latent + rope, hidden, layers),
        fp8(heads * (nope + value), latent, layers),
        fp8(hidden, heads * value, layers),
        fp8(fields["intermediate_size"], hidden, 3 * dense),
        fp8(inner, hidden, 3 * sparse * fields["n_shared_experts"]),
        fp8(inner, hidden, 3 * sparse * experts, 3 * sparse * fields["num_experts_per_tok"]),
        Matrix(experts, hidden, sparse),
    ]
    return ClosedForm(
        matrices=matrices,
        vectors=layers * (2 * hidden + query_rank + latent) + hidden + sparse * experts,
        vocabulary=fields["vocab_size"],
        hidden=hidden,
        is_tied=False,
        cached_per_layer=latent + rope,
        layers=layers,
        decode_products=heads * (2 * latent + rope),  # queries and sums of values stay in the latent space
        prefill_products=heads * (nope + rope + value),
    )


def bloom(fields: dict) -> ClosedForm:
    """BLOOM (2211.05100): a plain feed-forward of four times the width, biases and layer norms everywhere."""
    layers, hidden = fields["n_layer"], fields["n_embed"]
    return ClosedForm(
        matrices=[Matrix(hidden, hidden, 4 * layers), Matrix(4 * hidden, hidden, 2 * layers)],
        vectors=layers * (3 * hidden + hidden + 4 * hidden + hidden + 4 * hidden) + 4 * hidden,
        vocabulary=fields["vocab_size"],
        hidden=hidden,
        is_tied=True,
        cached_per_layer=2 * hidden,
        layers=layers,
        decode_products=2 * hidden,
        prefill_products=2 * hidden,
    )


def falcon(fields: dict) -> ClosedForm:
    """Falcon (2311.16867): like BLOOM, without biases, with fewer heads of keys and values."""
    layers, hidden = fields["num_hidden_layers"], fields["hidden_size"]
    kv = fields["num_kv_heads"] * hidden // fields["num_attention_heads"]
    return ClosedForm(
        matrices=[
            Matrix(hidden, hidden, 2 * layers),
            Matrix(kv, hidden, 2 * layers),
            Matrix(4 * hidden, hidden, 2 * layers),
        ],
        vectors=layers * 4 * hidden + 2 * hidden,
        vocabulary=fields["vocab_size"],
        hidden=hidden,
        is_tied=True,
        cached_per_layer=2 * kv,
        layers=layers,
        decode_products=2 * hidden,
        prefill_products=2 * hidden,
    )


def model_of(name: str):
    return config_from_huggingface(catalog.entry(name).config, Path(f"{name}.json"))


def test_the_zoo_has_the_models_that_people_ask_about() -> None:
    assert set(WANTED) <= set(catalog.names())
    assert [entry.name for entry in catalog.entries()] == list(catalog.names())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"no model 'gpt-5' in the zoo; it has .*bloom-176b, .*qwen3-8b"):
        catalog.entry("gpt-5")


@every_entry
def test_sizes_are_those_of_the_formulas_and_of_the_publisher(name: str) -> None:
    entry, sizes = catalog.entry(name), model_sizes(model_of(name), "bfloat16")
    form = closed_form(entry.config)
    assert form.parameters == pytest.approx(entry.published_parameters, rel=TOLERANCE)
    assert sizes.parameters == pytest.approx(form.parameters, rel=TOLERANCE)
    assert sizes.active_parameters == pytest.approx(form.active_parameters, rel=TOLERANCE)
    assert sizes.weight_bytes == pytest.approx(form.weight_bytes, rel=TOLERANCE)
    assert sizes.kv_bytes_per_token == pytest.approx(form.kv_bytes_per_token, rel=TOLERANCE)


@every_entry
def test_a_decode_step_computes_what_the_formulas_say(name: str) -> None:
    config, form = model_of(name), closed_form(catalog.entry(name).config)
    context = min(config.max_positions, 6144)  # past every window
    graph = trace_model(config, Configuration("decode", 1, 1, context), "bfloat16").graph
    assert graph.product_flops == pytest.approx(form.decode_flops(context), rel=TOLERANCE)
    assert graph.parameter_bytes == pytest.approx(form.weight_bytes, rel=TOLERANCE)
    cache_bytes = sum(value.bytes for value in graph.values if value.kind == "cache")
    assert cache_bytes == pytest.approx(context * form.kv_bytes_per_token, rel=TOLERANCE)


@every_entry
def test_a_prefill_step_computes_what_the_formulas_say(name: str) -> None:
    config, form = model_of(name), closed_form(catalog.entry(name).config)
    batch, context = 2, 512
    graph = trace_model(config, Configuration("prefill", batch, context, context), "bfloat16").graph
    assert graph.product_flops / (batch * context) == pytest.approx(form.prefill_flops(context), rel=TOLERANCE)


@pytest.mark.parametrize("name", [entry.name for entry in catalog.entries() if entry.active_parameters])
def test_active_parameters_are_the_published_ones(name: str) -> None:
    """Publishers round to a few digits; OpenAI leaves out the embedding, which has 0.58 billion parameters."""
    form, entry = closed_form(catalog.entry(name).config), catalog.entry(name)
    left_out = form.head if name.startswith("gpt-oss") else 0
    assert form.active_parameters - left_out == pytest.approx(entry.active_parameters, rel=0.02)


@pytest.mark.parametrize(("name", "share"), [("deepseek-r1", 0.0558), ("mixtral-8x7b", 0.275)])
def test_a_decode_step_reads_only_the_experts_it_chooses(name: str, share: float) -> None:
    graph = trace_model(model_of(name), Configuration("decode", 1, 1, 512), "bfloat16").graph
    assert graph.parameter_bytes_read / graph.parameter_bytes == pytest.approx(share, rel=0.02)
