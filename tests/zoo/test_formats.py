"""The two binary formats: against the reference reader (GGUF), against the format's own writer rules (CTranslate2)."""

import struct

import gguf
import numpy as np
import pytest

from unbraid.core.errors import UnbraidError
from unbraid.zoo.ctranslate2 import read_ct2
from unbraid.zoo.gguf import GGUF, dequantise

KINDS = ["F32", "F16", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K"]


@pytest.mark.parametrize("kind", KINDS)
def test_dequantising_is_bit_for_bit_the_reference(kind):
    """Random bytes, so that every bit of every block is used; the scales are kept finite."""
    number = gguf.GGMLQuantizationType[kind]
    values, width = gguf.GGML_QUANT_SIZES[number]
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (300, width), dtype=np.uint8)
    halves = {"Q4_1": [0, 2], "Q5_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [208], "F16": [0]}.get(kind, [])
    for at in halves:
        raw[:, at : at + 2] = rng.normal(size=300).astype(np.float16)[:, None].view(np.uint8).reshape(300, 2)
    plain = {"F32": np.float32, "F16": np.float16}.get(kind)
    expected = gguf.dequantize(raw.view(plain) if plain else raw, number).reshape(-1)
    ours = dequantise(raw, kind)
    assert ours.dtype == np.float32
    assert ours.size == 300 * values
    np.testing.assert_array_equal(ours, expected)


def test_unknown_format_is_named():
    with pytest.raises(UnbraidError, match=r"'Q2_K' is not read here; accepted: F32"):
        dequantise(np.zeros(84, np.uint8), "Q2_K")


@pytest.fixture
def gguf_file(tmp_path):
    """A file from the reference writer: strings, numbers, lists, an fp32 and a quantised tensor."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_float32("a.theta", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_array("a.tokens", ["x", "é", "<|end|>"])
    writer.add_array("a.scores", [0.5, -1.5])
    weights = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    writer.add_tensor("plain.weight", weights)
    packed = gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, weights


def test_gguf_reads_what_the_reference_wrote(gguf_file):
    path, weights = gguf_file
    read = GGUF(path)
    assert read.meta["general.architecture"] == "llama"
    assert read.meta["a.count"] == 7
    assert read.meta["a.flag"] is True
    assert read.meta["a.tokens"] == ["x", "é", "<|end|>"]
    assert read.meta["a.scores"] == [0.5, -1.5]
    tensors = dict(read.tensors())
    assert read.kinds == {"plain.weight": "F32", "packed.weight": "Q8_0"}
    np.testing.assert_array_equal(tensors["plain.weight"], weights)
    assert np.abs(tensors["packed.weight"] - weights).max() < np.abs(weights).max() / 127


def test_damaged_gguf(gguf_file):
    path, _ = gguf_file
    data = path.read_bytes()
    for length in (0, 3, 20, 60, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:length])
        with pytest.raises(UnbraidError, match="fetch it again"):
            GGUF(path)
    path.write_bytes(b"PK" + data[2:])
    with pytest.raises(UnbraidError, match="not a GGUF file"):
        GGUF(path)


def ct2_bytes(arrays, aliases=(), version=6) -> bytes:
    """Write a model.bin by the rules in the reader's header."""

    def name(text):
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    types = {np.float32: 0, np.int8: 1, np.int16: 2, np.int32: 3, np.float16: 4}
    out = struct.pack("<I", version) + name("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for key, array in arrays.items():
        out += name(key) + struct.pack("<B", array.ndim) + b"".join(struct.pack("<I", n) for n in array.shape)
        out += struct.pack("<BI", types[array.dtype.type], array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases))
    return out + b"".join(name(alias) + name(target) for alias, target in aliases)


ARRAYS = {
    "encoder/conv1/weight": np.arange(24, dtype=np.float16).reshape(2, 4, 3),
    "decoder/embeddings/weight": np.ones((5, 4), np.float32),
    "decoder/num_heads": np.int16(6).reshape(()),
}


def test_ct2_arrays_and_aliases(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(ct2_bytes(ARRAYS, [("decoder/projection/weight", "decoder/embeddings/weight")]))
    model = read_ct2(path)
    assert (model.spec, model.revision) == ("WhisperSpec", 3)
    for name, array in ARRAYS.items():
        assert model.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(model.arrays[name], array)
    assert model.arrays["decoder/projection/weight"] is model.arrays["decoder/embeddings/weight"]


def test_corrupt_ct2(tmp_path):
    path = tmp_path / "model.bin"
    data = ct2_bytes(ARRAYS)
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(UnbraidError):
            read_ct2(path)
    path.write_bytes(data + b"junk")
    with pytest.raises(UnbraidError, match="4 bytes too many"):
        read_ct2(path)
    path.write_bytes(ct2_bytes(ARRAYS, [("a", "nowhere")]))
    with pytest.raises(UnbraidError, match="damaged"):
        read_ct2(path)
    path.write_bytes(ct2_bytes(ARRAYS, version=5))
    with pytest.raises(UnbraidError, match=r"version 6 \(found 5\)"):
        read_ct2(path)


def test_ct2_flipped_bytes_never_escape_as_other_errors(tmp_path):
    """A hostile file may be read or refused, but only ever with the house's error."""
    path = tmp_path / "model.bin"
    data = bytearray(ct2_bytes(ARRAYS, [("x", "encoder/conv1/weight")]))
    rng = np.random.default_rng(1)
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        try:
            read_ct2(path)
        except UnbraidError:
            continue
