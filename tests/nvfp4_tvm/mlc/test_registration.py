from types import SimpleNamespace

import pytest

from nvfp4_tvm.mlc import registration
from nvfp4_tvm.mlc.quantization import ENTRIES, KIND

SOURCE = registration.SOURCE


def model(*quantizations, sources=(SOURCE,)):
    return SimpleNamespace(
        quantize={name: f"{name} of it" for name in quantizations},
        source={name: lambda *_, name=name: f"{name} of it" for name in sources},
    )


def test_quantizations_are_entered_beside_those_there():
    theirs = {"q4f16_1": object(), ENTRIES[0].name: object()}
    module = SimpleNamespace(QUANTIZATION=dict(theirs))
    registration.register_quantizations(module)
    assert set(module.QUANTIZATION) == {"q4f16_1", *(entry.name for entry in ENTRIES)}
    assert all(module.QUANTIZATION[name] is entry for name, entry in theirs.items())


def test_models_with_group_quantization_get_nvfp4():
    models = {
        "both": model("no-quant", "group-quant"),
        "plain": model("no-quant"),
        "elsewhere": model("no-quant", "group-quant", sources=("awq",)),
    }
    registration.register_models(SimpleNamespace(MODELS=models))
    assert KIND in models["both"].quantize
    assert KIND not in models["plain"].quantize and KIND not in models["elsewhere"].quantize


def test_other_quantizations_load_as_before():
    models = {"both": model("no-quant", "group-quant")}
    registration.register_models(SimpleNamespace(MODELS=models))
    for quantization in (SimpleNamespace(kind="group-quant"), None):
        assert models["both"].source[SOURCE]("config", quantization) == f"{SOURCE} of it"


def test_what_a_model_has_under_the_kind_stays():
    models = {"both": model("no-quant", "group-quant", KIND)}
    registration.register_models(SimpleNamespace(MODELS=models))
    assert models["both"].quantize[KIND] == f"{KIND} of it"


def test_the_loader_of_other_mappings_is_theirs():
    calls = []
    module = SimpleNamespace(LOADER={SOURCE: lambda **arguments: calls.append(arguments) or "theirs"})
    registration.register_loaders(module)
    mapping = SimpleNamespace(param_map={})
    assert module.LOADER[SOURCE](path="p", extern_param_map=mapping, quantize_param_map="q") == "theirs"
    assert calls == [{"path": "p", "extern_param_map": mapping, "quantize_param_map": "q"}]


def test_external_kernels_are_off_within_and_on_again_after_an_error():
    from mlc_llm.op import extern

    enabled = extern.STORE = extern.ExternModuleStore(cutlass_group_gemm=True)
    with pytest.raises(ValueError, match="inside"), registration.without_external_modules():
        assert not extern.STORE.cutlass_group_gemm
        raise ValueError("inside")
    assert extern.STORE is enabled
    extern.STORE = extern.ExternModuleStore()


def test_a_model_is_asked_for_its_sources_without_external_kernels(mlc_llm, small, modelopt, monkeypatch):
    """By `_quantize`, for a checkpoint whose layers are recorded."""
    from mlc_llm.model.small import huggingface
    from mlc_llm.op import extern

    seen = []

    def source(*arguments):
        seen.append(extern.STORE.cutlass_group_gemm)
        return huggingface(*arguments)

    monkeypatch.setattr(extern, "STORE", extern.ExternModuleStore(cutlass_group_gemm=True))
    config = small.config.from_file(modelopt / "config.json")
    quantization = mlc_llm.quantization.QUANTIZATION["nvfp4_skel"]
    _, quant_map = registration._quantize(small.quantize["no-quant"], source, config, quantization)
    assert seen == [False] and extern.STORE.cutlass_group_gemm
    assert (
        "layers.0.o_proj.weight" in quant_map.param_map
        and "layers.1.o_proj.weight" not in quant_map.param_map
    )
