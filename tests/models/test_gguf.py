"""GGUF files: the library's writer's and those of llama.cpp's converter, whole, split, damaged."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType, GGUFEndian, GGUFWriter
from gguf_files import LLAMA, Weights, llama_weights, write_gguf

from plait.errors import CheckpointError, UnsupportedModelError
from plait.models.checkpoint import Checkpoint, open_checkpoint
from plait.models.checkpoint.gguf_reader import GGUFFiles, read_gguf
from plait.models.config import DecoderConfig
from plait.models.decoder import Decoder
from plait.models.family import build

Q4_0, Q8_0 = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0


def decoder_config(checkpoint: Checkpoint) -> DecoderConfig:
    assert isinstance(checkpoint.config, DecoderConfig)
    return checkpoint.config


def assert_holds(checkpoint: Checkpoint, weights: Weights, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert checkpoint.tensor_names == tuple(weights)
    for name, expected in weights.items():
        tensor = checkpoint.read(name)
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous
        np.testing.assert_allclose(tensor, expected, rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", llama_weights())


def test_gives_configuration_tokenizer_and_tensors(gguf_path: Path):
    checkpoint = open_checkpoint(gguf_path)
    assert checkpoint.config == LLAMA
    assert (checkpoint.bos_token, checkpoint.eos_token, checkpoint.eos_token_ids) == ("<user>", "<end>", (0,))
    assert (checkpoint.chat_template, checkpoint.max_sequence) == ("{{ messages[0].content }}", 128)
    assert_holds(checkpoint, llama_weights())


def test_tokenizer_splits_digits_and_knows_control_tokens(gguf_path: Path):
    tokenizer = tokenizers.Tokenizer.from_str(open_checkpoint(gguf_path).tokenizer_json)
    assert tokenizer.encode("ab12<end>").tokens == ["ab", "1", "2", "<end>"]
    assert tokenizer.decode(tokenizer.encode("ab cd é<end>").ids) == "ab cd é"


def test_with_an_output_matrix_is_untied(tmp_path: Path):
    weights = llama_weights() | {"head.weight": np.ones((260, 64), np.float32)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))
    assert not decoder_config(checkpoint).tie_embeddings
    assert checkpoint.read("head.weight").shape == (260, 64)


# Files of llama.cpp's converter, against transformers' logits of the same weights. `tests/oracle` made both.

DECODERS = Path(__file__).parents[1] / "golden" / "decoders"


@pytest.mark.parametrize("path", sorted(DECODERS.glob("*.gguf")), ids=lambda path: path.name)
def test_logits_are_those_of_transformers(path: Path):
    case, kind, _ = path.name.split(".")
    reference, prefix = np.load(DECODERS / f"{case}.npz"), "q8_0_" if kind == "q8_0" else ""
    tokens, positions = reference["tokens_96"][None], reference["positions_96"]
    rows = [*positions, *range(96, tokens.shape[1])]
    checkpoint = open_checkpoint(path)
    config = decoder_config(checkpoint).dense
    cache = [tuple(np.zeros((1, tokens.shape[1], *shape), np.float32) for shape in config.cache_shapes)]

    @jax.jit
    def logits(parameters: dict[str, jax.Array]) -> jax.Array:
        decoder = build(config, np.float32).module(parameters)
        assert isinstance(decoder, Decoder)
        hidden, _ = decoder.hidden_states(tokens, np.zeros(1, np.int32), cache * config.num_layers)  # type: ignore[arg-type]
        return decoder.logits(hidden)

    parameters = {name: jnp.asarray(checkpoint.read(name)) for name in checkpoint.tensor_names}
    found = np.asarray(logits(parameters))[0, rows]
    expected = np.concatenate([reference[f"{prefix}prefill_96"], reference[f"{prefix}decode_96"]])
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4


# Quantization


@pytest.mark.parametrize(
    ("quantization", "tolerance"), [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2), ("Q4_1", 0.4)], ids=str
)
def test_tensors_are_dequantized(tmp_path: Path, quantization: str, tolerance: float):
    kind = GGMLQuantizationType[quantization]
    path = write_gguf(tmp_path / "m.gguf", llama_weights(), quantizations=lambda name: kind)
    assert_holds(open_checkpoint(path), llama_weights(), atol=tolerance, rtol=2e-2)


@pytest.mark.parametrize("name", [
    "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS",
])  # fmt: skip
def test_every_type_that_the_library_dequantizes_is_read(tmp_path: Path, name: str):
    kind = GGMLQuantizationType[name]
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (3, 512 // block_size * block_bytes), np.uint8)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("matrix", raw, raw_dtype=kind)
    write(writer)
    _, files = read_gguf(tmp_path / "m.gguf")
    assert (files.shape("matrix"), files.kind("matrix")) == ((3, 512), "float")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(files.read("matrix"), gguf.dequantize(raw, kind))


@pytest.mark.parametrize(
    ("shape", "scales"), [((4, 64), [0.25]), ((3, 4, 64), [0.25, 3.0, 0.5])], ids=["matrix", "experts"]
)
def test_scales_beside_the_blocks_of_a_tensor_are_factors_of_it(
    tmp_path: Path, shape: tuple[int, ...], scales: list[float]
):
    raw = gguf.quants.quantize(np.random.default_rng(0).standard_normal(shape).astype(np.float32), Q8_0)
    files = _with_scales(tmp_path / "m.gguf", raw, scales)
    expected = gguf.dequantize(raw, Q8_0) * np.array(scales, np.float32).reshape(-1, *[1] * (len(shape) - 1))
    np.testing.assert_array_equal(files.read("blk.0.ffn_up.weight"), expected)


def test_scales_that_are_neither_one_nor_one_an_expert_are_refused(tmp_path: Path):
    files = _with_scales(tmp_path / "m.gguf", gguf.quants.quantize(np.ones((4, 64), np.float32), Q8_0), [1.0] * 4)
    with pytest.raises(CheckpointError, match=r"'blk.0.ffn_up.scale' is \[4\], 'blk.0.ffn_up.weight' wants \[1\]"):
        files.read("blk.0.ffn_up.weight")


def _with_scales(path: Path, raw: np.ndarray, scales: list[float]) -> GGUFFiles:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=Q8_0)
    writer.add_tensor("blk.0.ffn_up.scale", np.array(scales, np.float32))
    write(writer)
    return read_gguf(path)[1]


def write(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("quantized", "form", "parts"),
    [
        ({"attention": Q8_0, "mlp": Q8_0}, "q8_0", ("mlp", "attention")),
        ({"attention": Q4_0, "mlp": Q4_0}, "q4_0", ("mlp", "attention")),
        ({"mlp": Q4_0}, "q4_0", ("mlp",)),
        ({"attention": Q8_0, "mlp": Q4_0}, "q4_0", ("mlp",)),
        ({"attention.query": Q8_0, "mlp.up": Q8_0}, None, ()),
        ({"embedding": Q8_0}, None, ()),
        ({"attention": GGMLQuantizationType.Q4_1}, None, ()),
    ],
    ids=["all-q8_0", "all-q4_0", "mlp", "one-of-two-forms", "a-part-in-part", "embedding", "no-form-of-plait"],
)
def test_parts_of_one_quantization_have_a_stored_form(
    tmp_path: Path, quantized: dict[str, GGMLQuantizationType], form: str | None, parts: tuple[str, ...]
):
    def kind(name: str) -> GGMLQuantizationType:
        module = name.removeprefix("layers.0.").removeprefix("layers.1.")
        return next((kind for start, kind in quantized.items() if module.startswith(start)), GGMLQuantizationType.F16)

    config = decoder_config(open_checkpoint(write_gguf(tmp_path / "m.gguf", llama_weights(), quantizations=kind)))
    assert (config.stored_form, config.stored_parts) == (form, parts)
    assert config.dense == LLAMA


# Splits


@pytest.fixture
def splits(tmp_path: Path) -> list[Path]:
    """A file in several parts, as the library's writer splits it."""

    def split(writer: GGUFWriter) -> None:
        writer.split_max_tensors = 8

    write_gguf(tmp_path / "m.gguf", llama_weights(), extra=split)
    return sorted(tmp_path.glob("m-*.gguf"))


def test_a_split_file_is_opened_by_its_first_part(splits: list[Path]):
    assert [path.name for path in splits] == [f"m-0000{index}-of-00003.gguf" for index in (1, 2, 3)]
    assert_holds(open_checkpoint(splits[0]), llama_weights())


def test_a_later_part_says_which_is_the_first(splits: list[Path]):
    with pytest.raises(CheckpointError, match=r"a later one of 00003 splits; give the first one, m-00001-of-00003"):
        open_checkpoint(splits[1])


def test_a_missing_part_is_named(splits: list[Path]):
    splits[2].unlink()
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf is not beside it; fetch it too"):
        open_checkpoint(splits[0])


def test_a_renamed_split_says_how_splits_are_named(splits: list[Path]):
    path = splits[0].rename(splits[0].with_name("renamed.gguf"))
    with pytest.raises(CheckpointError, match=r"one of 3 splits; they must be named NAME-00001-of-0000N\.gguf"):
        open_checkpoint(path)


def test_a_part_of_another_split_is_refused(splits: list[Path]):
    splits[2].write_bytes(splits[1].read_bytes())
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf: its tensor '.*' is in another split too"):
        open_checkpoint(splits[0])


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "mamba"}, "GGUF architecture 'mamba' is not supported; supported: llama, smollm3, qwen2"),
        ({"pre": "viking"}, "pre-tokenizer 'viking' is not supported; supported: 'llama', 'bert', and 'gpt2' with"),
        ({"extra": lambda writer: writer.add_tensor("odd", np.ones(8, np.float32))}, "its tensor 'odd' is none that"),
        (
            {"extra": lambda writer: writer.add_tensor("odd", np.ones(8, np.int32))},
            "quantization I32 not supported; supported: F32, F16, Q4_0",
        ),
    ],
    ids=["architecture", "tokenizer", "tensor", "quantization"],
)
def test_unsupported_says_what_is_supported(tmp_path: Path, options: dict, message: str):
    path = write_gguf(tmp_path / "m.gguf", llama_weights(), **options)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(path)


def test_without_a_tensor_is_refused(tmp_path: Path):
    weights = llama_weights()
    del weights["layers.1.mlp.up.weight"]
    with pytest.raises(CheckpointError, match=r"has no tensor blk\.1\.ffn_up\.weight.*layers\.1\.mlp\.up\.weight"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))


def test_with_a_tensor_of_another_shape_is_refused(tmp_path: Path):
    weights = llama_weights() | {"layers.1.mlp.up.weight": np.ones((95, 64), np.float32)}
    with pytest.raises(CheckpointError, match=r"'blk\.1\.ffn_up\.weight' is \[95, 64\].*wants \[96, 64\]"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.3, 0.6, 0.999], ids=str)
def test_truncated_is_refused(gguf_path: Path, tmp_path: Path, share: float):
    data = gguf_path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.gguf is no GGUF file that can be read: .*fetch it again"):
        open_checkpoint(tmp_path / "cut.gguf")


def with_count(offset: int, count: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + struct.pack("<Q", count) + data[offset + 8 :]


def with_array(kind: int, count: int) -> Callable[[bytes], bytes]:
    """Puts an array of that many values of a kind in the place of the first field, which is a string."""
    value = 24 + 8 + len("general.architecture")
    return lambda data: data[:value] + struct.pack("<IIQ", 9, kind, count) + data[value + 16 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_count(8, 2**60), "1152921504606846976 tensors, the limit is 1048576"),
        (with_count(16, 2**60), "1152921504606846976 metadata fields, the limit is 65536"),
        (with_count(24, 2**63), "the file ends at byte"),
        (with_array(8, 2**60), "1152921504606846976 values in an array, the limit is 16777216"),
        (with_array(8, 2**24), "the file ends at byte"),
        (with_array(4, 2**24), "the file ends at byte"),
        (with_array(9, 1), "an array of arrays, which is not supported"),
    ],
    ids=["tensors", "fields", "string", "array", "strings", "numbers", "arrays"],
)
def test_hostile_counts_are_refused(gguf_path: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str):
    (tmp_path / "m.gguf").write_bytes(damage(gguf_path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"no GGUF file that can be read: .*{message}.*; fetch it again"):
        open_checkpoint(tmp_path / "m.gguf")


def test_the_other_byte_order_is_refused(tmp_path: Path):
    write(GGUFWriter(tmp_path / "m.gguf", "llama", endianess=GGUFEndian.BIG))
    with pytest.raises(CheckpointError, match="it is of the other byte order, which is not supported"):
        open_checkpoint(tmp_path / "m.gguf")
