import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from bundle_factory import SPECS, WEIGHTS_BYTES, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from plait.compiler.bundle.weights import ALIGNMENT_BYTES, TensorSpec, map_weights, write_weights
from plait.errors import BundleError, BundleIntegrityError

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8]
DTYPES += [np.uint64, np.uint32, np.uint16, np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.fixture
def weight_file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    write_weights(path, tensors(), SPECS)
    return path


def read_header(path: Path) -> tuple[dict[str, dict], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_values_of_every_dtype_come_back_bit_for_bit(tmp_path: Path, dtype: type) -> None:
    values = np.arange(33 * 3).reshape(33, 3).astype(dtype)
    write_weights(tmp_path / "w", [("a", values), ("b", values[:5])], {"a": ((33, 3), dtype), "b": ((5, 3), dtype)})
    weights = map_weights(tmp_path / "w")
    assert weights["a"].dtype == np.dtype(dtype)
    assert weights["a"].tobytes() == values.tobytes()
    assert weights["b"].tobytes() == values[:5].tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1,), (3, 0, 2), (2, 3, 4, 5)], ids=str)
def test_unusual_shapes_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.ones(shape, np.float32)
    write_weights(tmp_path / "w", [("a", values), ("b", values)], {"a": (shape, "float32"), "b": (shape, "float32")})
    weights = map_weights(tmp_path / "w")
    assert weights["a"].shape == weights["b"].shape == shape
    np.testing.assert_array_equal(weights["b"], values)


def test_file_without_tensors_is_valid(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", [], {})
    assert len(map_weights(tmp_path / "w")) == 0


def test_every_tensor_starts_on_a_boundary_in_file_and_memory(weight_file: Path) -> None:
    header, data = read_header(weight_file)
    data_start = weight_file.stat().st_size - len(data)
    for name, view in map_weights(weight_file).items():
        assert (data_start + header[name]["data_offsets"][0]) % ALIGNMENT_BYTES == 0
        assert view.ctypes.data % ALIGNMENT_BYTES == 0
        assert not view.flags.writeable


def test_padding_is_not_among_the_tensors_nor_in_their_bytes(weight_file: Path) -> None:
    weights = map_weights(weight_file)
    assert list(weights) == list(SPECS)
    assert weights.num_bytes == WEIGHTS_BYTES
    assert any(name.startswith("__pad_") for name in read_header(weight_file)[0])


def test_safetensors_library_reads_our_files(weight_file: Path) -> None:
    ours, theirs = map_weights(weight_file), load_file(weight_file)
    with safe_open(weight_file, framework="numpy") as file:
        assert set(ours) <= set(file.keys())
    for name, values in ours.items():
        assert theirs[name].dtype == values.dtype
        assert theirs[name].tobytes() == values.tobytes()


def test_tensors_may_come_in_any_order(tmp_path: Path, weight_file: Path) -> None:
    write_weights(tmp_path / "other", reversed(list(tensors())), SPECS)
    assert (tmp_path / "other").read_bytes() == weight_file.read_bytes()


def test_strided_values_are_written_in_row_order(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_weights(tmp_path / "w", [("a", values.T)], {"a": ((4, 3), np.float32)})
    np.testing.assert_array_equal(map_weights(tmp_path / "w")["a"], values.T)


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def one_after_the_other() -> Iterator[tuple[str, np.ndarray]]:
        for name in "abc":
            assert [ref for ref in alive if ref() is not None] == []
            values = np.zeros(100, np.float32)
            alive.append(weakref.ref(values))
            pair = (name, values)
            del values
            yield pair
            del pair

    write_weights(tmp_path / "w", one_after_the_other(), dict.fromkeys("abc", ((100,), np.float32)))
    assert len(alive) == 3


ONE: dict[str, TensorSpec] = {"a": ((2,), np.float32)}
A = ("a", np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("given_tensors", "specs", "message"),
    [
        ([], ONE, "1 of 1 tensors never came, 'a' first"),
        ([A, A], ONE, "'a' comes twice"),
        ([A, ("b", A[1])], ONE, "'b' is not among"),
        ([("a", np.zeros(3, np.float32))], ONE, r"float32\[3\], its specification says float32\[2\]"),
        ([("a", np.zeros(2, np.float64))], ONE, r"float64\[2\], its specification says float32\[2\]"),
        ([], {"__pad_0": ((2,), np.float32)}, "reserved"),
        ([], {"__metadata__": ((2,), np.float32)}, "reserved"),
        ([], {"a": ((2,), np.complex64)}, "complex64, which weight files cannot hold"),
    ],
    ids=["missing", "twice", "unknown", "shape", "dtype", "pad name", "metadata name", "complex"],
)
def test_wrong_tensors_are_refused(
    tmp_path: Path, given_tensors: list[tuple[str, np.ndarray]], specs: dict[str, TensorSpec], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write_weights(tmp_path / "w", given_tensors, specs)


def test_unwritable_path_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot write .*w: No such file or directory"):
        write_weights(tmp_path / "nowhere" / "w", [A], ONE)


def test_mapping_is_released_with_the_last_view(weight_file: Path) -> None:
    weights = map_weights(weight_file)
    view = weights["scale"]
    assert not weights.close()
    assert view.shape == ()
    assert np.isfinite(view)  # still mapped
    del view
    gc.collect()
    assert weights.close()
    assert str(weight_file) not in Path("/proc/self/maps").read_text()


def test_jax_aliases_a_view_and_keeps_it_mapped(tmp_path: Path) -> None:
    values = np.arange(1024, dtype=np.float32)
    write_weights(tmp_path / "w", [("a", values)], {"a": ((1024,), np.float32)})
    weights = map_weights(tmp_path / "w")
    address = weights["a"].ctypes.data
    array = jax.device_put(weights["a"], jax.devices("cpu")[0])
    assert array.unsafe_buffer_pointer() == address
    assert not weights.close()
    np.testing.assert_array_equal(np.asarray(array), values)
    del array
    gc.collect()
    assert weights.close()


def test_closed_weights_are_empty(weight_file: Path) -> None:
    weights = map_weights(weight_file)
    assert weights.close()
    assert "scale" not in weights


def test_file_cut_off_anywhere_is_refused(weight_file: Path, tmp_path: Path) -> None:
    data = weight_file.read_bytes()
    for size in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(BundleIntegrityError, match="cut is damaged"):
            map_weights(tmp_path / "cut")


def test_file_with_bytes_after_the_data_is_refused(weight_file: Path) -> None:
    weight_file.write_bytes(weight_file.read_bytes() + b"\0")
    with pytest.raises(BundleIntegrityError, match=r"\d+ bytes expected, found \d+"):
        map_weights(weight_file)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleIntegrityError, match="cannot read none: No such file"):
        map_weights(tmp_path / "none")


def tensor(offsets: list, *, dtype: object = "U8", shape: object = None, **more: object) -> dict[str, object]:
    shape = [offsets[1] - offsets[0]] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": tensor([0, 64]), "b": tensor([0, 128])}, "'b' overlaps the one before"),
        ({"a": tensor([0, 96]), "b": tensor([64, 128])}, "'b' overlaps the one before"),
        ({"b": tensor([64, 128])}, "'b' leaves a hole before it"),
        ({"a": tensor([0, 64])}, "bytes expected, found"),
        ({"a": tensor([0, 256])}, "bytes expected, found"),
        ({"a": tensor([0, 128], shape=[127])}, "needs 127 bytes, found 128"),
        ({"a": tensor([0, 128], shape=[2**40, 2**40])}, "bytes, found 128"),
        ({"a": tensor([128, 0], shape=[128])}, "leaves a hole"),
        ({"a": tensor([0, 0], shape=[0, 2**62, 2**62]), "b": tensor([0, 128])}, "impossible shape"),
        ({"a": tensor([0, 0], shape=[0, 10**30]), "b": tensor([0, 128])}, "impossible shape"),
        ({"a": tensor([0, 0], shape=[1] * 33), "b": tensor([0, 128])}, "header: a.shape"),
        ({"a": tensor([0, 32]), "b": tensor([32, 128])}, "which is no multiple of 64"),
        ({"a": tensor([0, 128], dtype="F4")}, "has dtype 'F4'; known: F64"),
        ({"a": tensor([0, 128], dtype=7)}, "header: a.dtype"),
        ({"a": tensor([0, 128], shape=[-128])}, "header: a.shape.0"),
        ({"a": tensor([0, 128], shape=[True])}, "header: a.shape.0"),
        ({"a": tensor([0, 128], shape=["128"])}, "header: a.shape.0"),
        ({"a": tensor([0, 128], shape=[128.0])}, "header: a.shape.0"),
        ({"a": tensor([0, 128], shape={})}, "header: a.shape"),
        ({"a": tensor([-64, 64], shape=[128])}, "header: a.data_offsets.0"),
        ({"a": tensor([0, 128, 256])}, "header: a.data_offsets"),
        ({"a": tensor([0, 128], more=1)}, "header: a.more"),
        ({"a": {"dtype": "U8", "shape": [128]}}, "header: a.data_offsets"),
        ({"__metadata__": {"format": "pt"}, "a": tensor([0, 128])}, "header: __metadata__"),
        ([], "header: : Input should be"),
        (b"junk", "header: : Invalid JSON"),
        (b"[" * 100_000, "header: : Invalid JSON"),
        (b'{"a": \xff}', "header: : Invalid JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lying_header_is_refused(tmp_path: Path, header: object, message: str) -> None:
    write_header(tmp_path / "w", header, bytes(128))
    with pytest.raises(BundleIntegrityError, match=message):
        map_weights(tmp_path / "w")


@pytest.mark.parametrize("length", [0, 121, 2**31, 2**63, 2**64 - 1], ids=hex)
def test_impossible_header_length_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "w").write_bytes(length.to_bytes(8, "little") + bytes(120))
    with pytest.raises(BundleIntegrityError, match=f"header of {length} bytes, at most 120 possible"):
        map_weights(tmp_path / "w")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_header_bytes_are_refused_or_harmless(weight_file: Path, data: st.DataObject) -> None:
    original = weight_file.read_bytes()
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(original) - WEIGHTS_BYTES))] = data.draw(st.integers(0, 255))
    path = weight_file.with_name("damaged")
    path.write_bytes(damaged)
    try:
        weights = map_weights(path)
    except BundleIntegrityError:
        return
    assert sum(view.nbytes for view in weights.values()) <= len(original)
    assert all(view.tobytes() is not None for view in weights.values())  # every byte of every view can be read
