"""What convert_weight writes: packed parameters, float32 as float32, the size of the checkpoint."""

import numpy as np

from nvfp4_tvm.checkpoint import open_checkpoint


def converted(mlc_llm, small, checkpoint, out, name):
    from mlc_llm_model import read_parameters

    out.mkdir()
    mlc_llm.interface.convert_weight.convert_weight(
        config=checkpoint / "config.json", quantization=mlc_llm.quantization.QUANTIZATION[name], model=small,
        source=checkpoint / "model.safetensors", source_format="huggingface-safetensor", output=out,
    )  # fmt: skip
    return read_parameters(out)


def test_global_scales_are_written_as_they_are(mlc_llm, small, modelopt, tmp_path):
    parameters = converted(mlc_llm, small, modelopt, tmp_path / "out", "nvfp4_skel")
    source = open_checkpoint(modelopt)
    scales = [source.nvfp4(f"model.layers.0.{part}_proj").global_scale for part in "qkv"]
    written = parameters["layers.0.qkv_proj.global_scale"]
    np.testing.assert_array_equal(written, np.repeat(np.float32(scales), [128, 64, 64]))
    assert (written.view(np.uint32) & 0xFFFF).any(), "bfloat16 would hold these as well"


def test_what_is_written_has_the_size_of_the_checkpoint(mlc_llm, small, modelopt, tmp_path):
    parameters = converted(mlc_llm, small, modelopt, tmp_path / "out", "nvfp4_skel")
    source = open_checkpoint(modelopt)
    rows = sum(array.size for name, array in parameters.items() if name.endswith("global_scale"))
    stored = sum(source.tensor_info(name).nbytes for name in source.names() if not name.endswith("_scale_2"))
    assert sum(array.nbytes for array in parameters.values()) == stored + 4 * rows


def test_other_quantizations_are_written_as_mlc_llm_does(mlc_llm, small, plain, tmp_path, monkeypatch):
    module, source, encodings = mlc_llm.interface.convert_weight, "huggingface-safetensor", []

    class Empty:
        def load(self, **_settings):
            return []

    def dump(*_arguments, encode_format, **_settings):
        encodings.append(encode_format)

    monkeypatch.setattr(module.tvmjs, "dump_tensor_cache", dump)
    monkeypatch.setitem(module.LOADER, source, lambda **_: Empty())
    for name in ("q0bf16", "nvfp4_skel", "q0bf16"):
        quantization = mlc_llm.quantization.QUANTIZATION[name]
        module.convert_weight(plain / "config.json", quantization, small, plain, source, tmp_path)
    assert encodings == ["f32-to-bf16", "raw", "f32-to-bf16"]
