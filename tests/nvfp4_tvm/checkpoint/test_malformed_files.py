"""Malformed safetensors files, folders and shards."""

import json

import numpy as np
import pytest
import raw_checkpoints as rc
from raw_checkpoints import DOWN, UP, K, N, raw
from refusals import BF16, CT, DUPLICATE, FORMS, MO, quant, refuse

from nvfp4_tvm.checkpoint import open_checkpoint

# ---- the safetensors file


def header(change):
    def make():
        t = rc.tensors(MO)
        h, _ = rc.header_of(t)
        change(h)
        return rc.safetensors_bytes(t, json.dumps(h).encode())

    return make


def text_of(change):
    def make():
        t = rc.tensors(MO)
        return rc.safetensors_bytes(t, change(json.dumps(rc.header_of(t)[0])).encode())

    return make


def valid():
    return rc.safetensors_bytes(rc.tensors(MO))


NORM = "model.norm.weight"
FILES = {
    "nothing": lambda: b"",
    "seven_bytes": lambda: b"\0" * 7,
    "eight_zeros": lambda: b"\0" * 8,
    "header_only_length": lambda: valid()[:8],
    "half_header": lambda: valid()[:100],
    "no_data": lambda: valid()[: 8 + int.from_bytes(valid()[:8], "little")],
    "one_byte_short": lambda: valid()[:-1],
    "half": lambda: valid()[: len(valid()) // 2],
    "one_byte_more": lambda: valid() + b"\0",
    "length_huge": lambda: (2**64 - 1).to_bytes(8, "little") + valid()[8:],
    "length_2_63": lambda: (2**63).to_bytes(8, "little") + valid()[8:],
    "length_100MB": lambda: (100_000_001).to_bytes(8, "little") + valid()[8:],
    "length_file": lambda: len(valid()).to_bytes(8, "little") + valid()[8:],
    "length_zero": lambda: (0).to_bytes(8, "little") + valid()[8:],
    "length_one_less": lambda: (
        (int.from_bytes(valid()[:8], "little") - 8).to_bytes(8, "little") + valid()[8:]
    ),
    "pickle": lambda: b"\x80\x04\x95" + b"x" * 500,
    "zip": lambda: b"PK\x03\x04" + b"\0" * 500,
    "html": lambda: b"<!DOCTYPE html><html>Not found</html>" * 20,
    "lfs_pointer": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
    ),
    "not_json": text_of(lambda s: "x" * len(s)),
    "list": text_of(lambda s: "[]"),
    "deep": text_of(lambda s: '{"a":' * 20_000),
    "invalid_utf8": lambda: valid().replace(b"model.norm", b"model\xffnorm"),
    "duplicate": text_of(
        lambda s: s[:-1] + "," + s[s.index('"model.norm') : s.index(', "model.layers')] + "}"
    ),
    "entry_list": header(lambda h: h.update({NORM: []})),
    "entry_null": header(lambda h: h.update({NORM: None})),
    "no_dtype": header(lambda h: h[NORM].pop("dtype")),
    "no_shape": header(lambda h: h[NORM].pop("shape")),
    "no_offsets": header(lambda h: h[NORM].pop("data_offsets")),
    "extra_key": header(lambda h: h[NORM].update({"stride": 1})),
    "dtype_unknown": header(lambda h: h[NORM].update({"dtype": "BF17"})),
    "dtype_number": header(lambda h: h[NORM].update({"dtype": 5})),
    "dtype_wider": header(lambda h: h[NORM].update({"dtype": "F32"})),
    "shape_text": header(lambda h: h[NORM].update({"shape": "64"})),
    "shape_negative": header(lambda h: h[NORM].update({"shape": [-64]})),
    "shape_two_negatives": header(lambda h: h[NORM].update({"shape": [-8, -8]})),
    "shape_float": header(lambda h: h[NORM].update({"shape": [64.0]})),
    "shape_true": header(lambda h: h[NORM].update({"shape": [64, True]})),
    "shape_huge": header(lambda h: h[NORM].update({"shape": [2**62, 4]})),
    "shape_overflow": header(lambda h: h[NORM].update({"shape": [2**32, 2**32, 64]})),
    "shape_bigger": header(lambda h: h[NORM].update({"shape": [65]})),
    "shape_smaller": header(lambda h: h[NORM].update({"shape": [63]})),
    "shape_many": header(lambda h: h[NORM].update({"shape": [64] + [1] * 100})),
    "offsets_swapped": header(lambda h: h[NORM]["data_offsets"].reverse()),
    "offsets_negative": header(lambda h: h[NORM].update({"data_offsets": [-128, 0]})),
    "offsets_beyond": header(lambda h: h[NORM].update({"data_offsets": [10**9, 10**9 + 128]})),
    "offsets_one": header(lambda h: h[NORM].update({"data_offsets": [0]})),
    "offsets_three": header(lambda h: h[NORM]["data_offsets"].append(5000)),
    "offsets_overlap": header(lambda h: h[NORM].update({"data_offsets": [0, 128]})),
    "offsets_huge": header(lambda h: h[NORM].update({"data_offsets": [2**64, 2**64 + 128]})),
    "offsets_text": header(lambda h: h[NORM].update({"data_offsets": ["0", "128"]})),
    "metadata_list": header(lambda h: h.update({"__metadata__": []})),
    "metadata_number": header(lambda h: h.update({"__metadata__": {"format": 1}})),
    "name_long": header(lambda h: h.update({"x" * 2000: h.pop(NORM)})),
    "missing_tensor": header(lambda h: h.pop(NORM)),
}


@pytest.mark.parametrize("case", FILES)
def test_file(tmp_path, case):
    refuse(rc.write(tmp_path / "ckpt", MO, body=FILES[case]()), "model.safetensors", at_open=True)


# ---- folders and shards


def test_no_folder(tmp_path):
    refuse(tmp_path / "absent", "found nothing, expected a folder", at_open=True)


def test_a_file_for_a_folder(tmp_path):
    (tmp_path / "x").write_text("")
    refuse(tmp_path / "x", "found a file, expected a folder", at_open=True)


def test_no_config(tmp_path):
    folder = rc.write(tmp_path, MO)
    (folder / "config.json").unlink()
    refuse(folder, "config.json: cannot be read", at_open=True)


def test_config_is_a_folder(tmp_path):
    folder = rc.write(tmp_path, MO)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refuse(folder, "config.json: cannot be read", at_open=True)


def test_config_too_large(tmp_path):
    folder = rc.write(tmp_path, MO)
    with (folder / "config.json").open("r+b") as f:
        f.truncate(100 << 20)
    refuse(folder, "at most", at_open=True)


@pytest.mark.parametrize("name", [None, "pytorch_model.bin", "model.gguf", "consolidated.pt"])
def test_no_safetensors(tmp_path, name):
    folder = rc.write(tmp_path, MO, body=False, files=[(name, b"x")] if name else ())
    refuse(folder, name or "no weights", at_open=True)


def shards(folder, *, weight_map=None, index=None, second=None, form=MO):
    t = rc.tensors(form)
    names = list(t)
    first, rest = dict.fromkeys(names[:3]), dict.fromkeys(names[3:])
    parts = {"a.safetensors": {n: t[n] for n in first}, "b.safetensors": {n: t[n] for n in rest}}
    if second is not None:
        parts["b.safetensors"] = second(t, parts["b.safetensors"])
    correct = {n: f for f, p in parts.items() for n in p}
    content = index if index is not None else {"weight_map": (weight_map or (lambda m: m))(correct)}
    files = [(f, rc.safetensors_bytes(p)) for f, p in parts.items()]
    return rc.write(folder, form, body=False, files=[*files, ("model.safetensors.index.json", content)])


@pytest.mark.parametrize("form", FORMS)
def test_valid_shards(tmp_path, form):
    checkpoint = open_checkpoint(shards(tmp_path, form=form))
    checkpoint.verify()
    assert checkpoint.layers()[UP].file == "b.safetensors"


SHARDS = {
    "missing_file": ({"weight_map": lambda m: {**m, NORM: "c.safetensors"}}, "missing"),
    "empty_file_name": ({"weight_map": lambda m: {**m, NORM: ""}}, "missing"),
    "folder_name": ({"weight_map": lambda m: {**m, NORM: "."}}, "missing"),
    "parent": ({"weight_map": lambda m: {**m, NORM: "../a.safetensors"}}, "inside the folder"),
    "deep_parent": ({"weight_map": lambda m: {**m, NORM: "x/../../a.safetensors"}}, "inside the folder"),
    "absolute": ({"weight_map": lambda m: {**m, NORM: "/etc/passwd"}}, "inside the folder"),
    "drive": ({"weight_map": lambda m: {**m, NORM: "C:a.safetensors"}}, "inside the folder"),
    "backslash": ({"weight_map": lambda m: {**m, NORM: "..\\a.safetensors"}}, "inside the folder"),
    "nul": ({"weight_map": lambda m: {**m, NORM: "a\0.safetensors"}}, "inside the folder"),
    "wrong_shard": ({"weight_map": lambda m: {**m, NORM: "b.safetensors"}}, "different checkpoints"),
    "unlisted_tensor": ({"weight_map": lambda m: {k: v for k, v in m.items() if k != NORM}}, "different "
    "checkpoints"),
    "ghost_tensor": ({"weight_map": lambda m: {**m, "ghost": "a.safetensors"}}, "does not hold it"),
    "number": ({"weight_map": lambda m: {**m, NORM: 3}}, "weight_map"),
    "null": ({"weight_map": lambda m: {**m, NORM: None}}, "weight_map"),
    "no_map": ({"index": {"metadata": {}}}, "weight_map"),
    "map_list": ({"index": {"weight_map": []}}, "weight_map"),
    "index_list": ({"index": []}, "JSON list"),
    "index_empty": ({"index": b""}, "invalid JSON"),
    "index_deep": ({"index": b'{"weight_map":' * 50_000}, "nested too deeply"),
    "index_twice": ({"index": b'{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}'}, "twice"),
    "duplicate_tensor": ({"second": lambda t, p: {**p, NORM: t[NORM]}}, DUPLICATE),
    "duplicate_codes": (
        {"second": lambda t, p: {**p, f"{DOWN}.weight": raw(np.zeros((K, N), BF16))}}, DUPLICATE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARDS)
def test_shards(tmp_path, case):
    change, words = SHARDS[case]
    refuse(shards(tmp_path / "ckpt", **change), words, at_open=True)


def test_shards_without_an_index(tmp_path):
    folder = shards(tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    refuse(folder, "without model.safetensors.index.json", at_open=True)


def test_truncated_shard(tmp_path):
    folder = shards(tmp_path)
    data = (folder / "b.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(data[:-10])
    refuse(folder, "b.safetensors", at_open=True)


def test_slow_patterns_end(tmp_path, monkeypatch):
    from nvfp4_tvm.checkpoint import patterns

    monkeypatch.setattr(patterns, "_MAX_SECONDS", 0.0)
    refuse(rc.write(tmp_path, CT, cfg=quant(CT, ignore=["re:.*down.*"])), "matching took over")


def test_long_module_names_meet_patterns(tmp_path):
    t = rc.tensors(CT)
    t["m" * 300 + ".weight"] = raw(np.ones((4, 4), BF16))
    refuse(rc.write(tmp_path, CT, t, quant(CT, ignore=["re:.*x", DOWN])), "module name of 300 characters")
