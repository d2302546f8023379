import json

import numpy as np
import pytest
import tvm
import tvm_ffi
from mlc_llm_model import missing, mlc_llm
from mlc_modules import BOUNDS, Model, mlc_pipeline
from relax_modules import HALF_ULP, Weight, relative_error, tensor
from tvm import relax
from tvm.relax.pipeline import PIPELINE_MAP
from tvm.target import Target

from nvfp4_tvm import layout, op
from nvfp4_tvm.codegen.fatbin import extract_fatbins
from nvfp4_tvm.codegen.machine_code import CALLBACK, BuildLog
from nvfp4_tvm.codegen.sass import list_images
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.mlc.pipeline import compile_without_nvcc, has_operators, install, nvfp4_passes, with_nvfp4
from nvfp4_tvm.target import cuda_target, resolve_target

FUNCTIONS = ("prefill", "decode", "batch_decode", "batch_verify")
LLVM = resolve_target("llvm").target


def cuda(arch):
    return cuda_target(arch).target


def pipeline(target, **arguments):
    metadata = {"quantization": "nvfp4_skel"}
    return with_nvfp4(mlc_pipeline)(target=target, variable_bounds=BOUNDS, metadata=metadata, **arguments)


def externs(function):
    """Names of extern functions that a Relax function calls, in order."""
    names = []

    def visit(expr):
        if isinstance(expr, relax.Call) and isinstance(expr.op, relax.ExternFunc):
            names.append(str(expr.op.global_symbol))

    relax.analysis.post_order_visit(function, visit)
    return names


@pytest.fixture(scope="module", params=["sm_89", "sm_90a"])
def lowered(request):
    """The modules before and after RewriteCUDAGraph, and the executable; without nvcc, which takes longer."""
    target, stages = cuda(request.param), []
    mod, _ = Model().export()
    previous = tvm_ffi.get_global_func(CALLBACK)
    config = {"relax.backend.use_cuda_graph": True}
    with pytest.MonkeyPatch.context() as patch, tvm.transform.PassContext(config=config), target:
        patch.setattr("nvfp4_tvm.mlc.pipeline.shutil.which", lambda name: None)
        executable = relax.build(mod, target, relax_pipeline=pipeline(target, record=stages))
    tvm_ffi.register_global_func(CALLBACK, previous, override=True)
    return (*stages, executable)


def test_functions_share_one_kernel_function_for_a_shape_and_epilogue(lowered):
    planned, _, _ = lowered
    layer = ["nvfp4_matmul_384x256_bf16_bias_m1_2", "nvfp4_matmul_256x384_bf16_residual_m1_2"]
    expected = [*layer, *layer, "nvfp4_matmul_144x256_bf16_f32_m1_2"]
    for name in FUNCTIONS:
        assert [found for found in externs(planned[name]) if found.startswith("nvfp4")] == expected, name


def test_memory_is_planned_within_the_bounds(lowered):
    planned, _, _ = lowered
    sizes = []

    def visit(expr):
        name = expr.op.name if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) else None
        if name in ("relax.memory.alloc_storage", "relax.builtin.alloc_tensor"):
            sizes.extend(expr.args[0].values)

    for name in FUNCTIONS:
        relax.analysis.post_order_visit(planned[name], visit)
    assert sizes and all(isinstance(size, tvm.tirx.IntImm) for size in sizes)


def test_cuda_graphs_capture_the_kernels(lowered):
    """All but the one that reads the function's input, which lies elsewhere at every call, as its residual."""
    _, captured, _ = lowered
    reads_input = "nvfp4_matmul_256x384_bf16_residual_m1_2"
    for name in ("batch_decode", "decode"):
        outside = [found for found in externs(captured[name]) if found.startswith("nvfp4")]
        assert outside == [reads_input], name
        graphs = [
            gvar for gvar in captured.get_global_vars() if gvar.name_hint.startswith(f"{name}_cuda_graph")
        ]
        inside = [found for gvar in graphs for found in externs(captured[gvar]) if found.startswith("nvfp4")]
        assert len(inside) == 4 and inside.count(reads_input) == 1, name
    assert len([found for found in externs(captured["prefill"]) if found.startswith("nvfp4")]) == 5


def test_the_library_holds_machine_code(lowered, tmp_path):
    _, _, executable = lowered
    executable.export_library(str(tmp_path / "lib.so"))
    image = (tmp_path / "lib.so").read_bytes()
    images = [list_images(fatbin) for fatbin in extract_fatbins(image)]
    assert len(images) > 3 and b"__global__" not in image
    assert all([kind for kind, _ in found] == ["cubin", "ptx"] for found in images), images


def test_kernels_on_llvm_compute_the_model_in_float32():
    model = Model(dtype="float32", layers=1)
    mod, names = model.export()
    with LLVM:
        machine = relax.VirtualMachine(relax.build(mod, LLVM, relax_pipeline=pipeline(LLVM)), tvm.cpu())
    rng = np.random.default_rng(0)
    weights = {
        name: Weight(
            rng.integers(0, 256, (N, K // 2), dtype=np.uint8),
            rng.integers(0x28, 0x48, (N, K // 16), dtype=np.uint8),
            rng.uniform(0.005, 0.02, N).astype(np.float32),
        )
        for name, N, K in (("layers.0.up", 384, 256), ("layers.0.down", 256, 384), ("head", 144, 256))
    }
    plain = {"layers.0.norm.weight": rng.normal(1, 0.1, 256), "layers.0.up.bias": rng.normal(0, 1, 384)}
    plain = {name: value.astype(np.float32) for name, value in plain.items()}
    arrays = dict(plain)
    for name, weight in weights.items():
        packed = layout.pack(*weight.arrays())
        arrays.update(
            {f"{name}.{field}": getattr(packed, field) for field in ("words", "scales", "global_scale")}
        )
    params = [tensor(arrays[name]) for name in names]

    def expected(x):
        x = x.astype(np.float64)
        normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * plain["layers.0.norm.weight"]
        up = normed @ weights["layers.0.up"].exact().T + plain["layers.0.up.bias"]
        x = x + up / (1 + np.exp(-up)) @ weights["layers.0.down"].exact().T
        return x @ weights["head"].exact().T

    for name, shape in (("prefill", (1, 2, 256)), ("decode", (1, 1, 256)), ("batch_decode", (2, 1, 256))):
        x = rng.standard_normal(shape).astype(np.float32)
        found = machine[name](tensor(x), params).numpy()
        assert found.shape == (*shape[:2], 144)
        assert relative_error(found, expected(x)) < 64 * HALF_ULP["float32"], name


@pytest.mark.parametrize("target", [LLVM, cuda("sm_89")], ids=["llvm", "cuda"])
def test_unquantized_layers_get_this_project_s_kernels(target):
    builder, log = relax.BlockBuilder(), BuildLog()
    x, weight = (
        relax.Var(name, relax.TensorType(shape, "bfloat16"))
        for name, shape in (("x", (1, 1, 128)), ("weight", (512, 128)))
    )
    with builder.function("head", [x, weight]):
        transposed = builder.emit(relax.op.permute_dims(weight))
        builder.emit_func_output(builder.emit(relax.op.matmul(x, transposed, out_dtype="float32")))
    with target:
        mod = tvm.transform.Sequential(nvfp4_passes(target, {}, log))(builder.get())
    names = [
        gvar.name_hint for gvar, function in mod.functions_items() if isinstance(function, tvm.tirx.PrimFunc)
    ]
    assert names == (["dense_512x128"] if target is LLVM else [])
    assert len(log.modules) == (0 if target is LLVM else 5)
    called = "dense_512x128_bfloat16_float32" in mod["head"].script()
    assert called == (target is not LLVM) and "R.matmul" not in mod["head"].script()
    with target:
        mod = tvm.transform.Sequential(nvfp4_passes(target, {}, BuildLog(), dispatched=True))(builder.get())
    assert "R.matmul" in mod["head"].script()  # for cuBLAS


@pytest.mark.parametrize("cublas", [False, True])
def test_unquantized_layers_add_up_in_float32_unless_cublas_multiplies_them(cublas):
    builder, rng = relax.BlockBuilder(), np.random.default_rng(0)
    x = relax.Var("x", relax.TensorType((1, 256), "bfloat16"))
    plain = relax.Var("plain", relax.TensorType((256, 512), "bfloat16"))
    packed = layout.pack(*Weight.random(rng, 256, 256).arrays())
    with builder.function("main", [x, plain]):
        weight = map(relax.const, (packed.words, packed.scales, packed.global_scale))
        hidden = builder.emit(op.matmul(x, *weight, N=256))
        builder.emit_func_output(builder.emit(relax.op.matmul(hidden, plain)))
    target = cuda("sm_89")
    seen = []

    def mlc(target, **kwargs):
        @tvm.transform.module_pass(opt_level=0, name="mlc_llm")
        def run(mod, _ctx):
            seen.append(mod["main"].script())
            return mod

        return run

    with target:
        with_nvfp4(mlc)(target=target, cublas_gemm=cublas)(builder.get())
    assert ('out_dtype="float32"' in seen[0]) != cublas


@pytest.mark.parametrize("kind", ["metal", "vulkan", "webgpu", "rocm", "opencl"])
def test_other_targets_are_refused_before_anything_is_compiled(kind):
    message = rf"^target {kind}: no NVFP4 kernels; supported are cuda \(sm_80, .*sm_90\), llvm$"
    with pytest.raises(TargetError, match=message):
        pipeline(Target(kind))


@pytest.mark.parametrize("arch", ["sm_75", "sm_87", "sm_120"])
def test_other_architectures_are_refused(arch):
    with pytest.raises(TargetError, match=f"'{arch}' is not supported: .*choose one of sm_80, sm_86"):
        pipeline(Target({"kind": "cuda", "arch": arch}))


def test_several_architectures_at_once_are_refused(monkeypatch):
    monkeypatch.setenv("MLC_MULTI_ARCH", "90a")
    pipeline(cuda("sm_90a"))
    monkeypatch.setenv("MLC_MULTI_ARCH", "80, 89")
    with pytest.raises(TargetError, match=r"MLC_MULTI_ARCH=80, 89: .*one architecture, here sm_89; unset it"):
        pipeline(cuda("sm_89"))


def test_modules_of_other_quantizations_are_left_to_mlc():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 4), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.add(x, x)))
    mod, seen = builder.get(), []

    def mlc(target):
        @tvm.transform.module_pass(opt_level=0, name="mlc_llm")
        def run(mod, _ctx):
            seen.append(mod)
            return mod

        return run

    with_nvfp4(mlc)(target=Target("vulkan"))(mod)
    assert len(seen) == 1 and not has_operators(mod)
    assert tvm_ffi.structural_equal(seen[0], mod)


def test_install_takes_the_place_of_mlcs_pipeline_once(monkeypatch):
    monkeypatch.setitem(PIPELINE_MAP, "mlc_llm", mlc_pipeline)
    install()
    installed = PIPELINE_MAP["mlc_llm"]
    assert installed is not mlc_pipeline and installed.__wrapped__ is mlc_pipeline
    install()
    assert PIPELINE_MAP["mlc_llm"] is installed


def test_without_nvcc_other_kernels_get_machine_code_and_ptx(monkeypatch):
    previous = tvm_ffi.get_global_func(CALLBACK)
    try:
        monkeypatch.setattr("nvfp4_tvm.mlc.pipeline.shutil.which", lambda name: "/somewhere/nvcc")
        compile_without_nvcc(cuda("sm_90a"))
        assert tvm_ffi.get_global_func(CALLBACK).same_as(previous)
        monkeypatch.setattr("nvfp4_tvm.mlc.pipeline.shutil.which", lambda name: None)
        compile_without_nvcc(cuda("sm_90a"))
        image = bytes(tvm_ffi.get_global_func(CALLBACK)('extern "C" __global__ void f(float* x) { *x = 1; }'))
    finally:
        tvm_ffi.register_global_func(CALLBACK, previous, override=True)
    assert list_images(image) == [("cubin", "sm_90"), ("ptx", "sm_90")]


@pytest.fixture
def config(tmp_path):
    """A configuration as gen_config writes it, of a Llama with small bounds."""
    why = missing()
    if why:
        pytest.skip(why)
    sizes = {
        "context_window_size": 256,
        "prefill_chunk_size": 4,
        "max_batch_size": 2,
        "tensor_parallel_shards": 1,
    }
    model = {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": 144,
        **sizes,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "model_config": model, **sizes}))
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", ["nvidia/geforce-rtx-4090", "nvidia/nvidia-h100"])
def test_mlc_compiles_for_cuda_without_a_gpu(config, device):
    library = config.with_name("lib.so")
    options = ["--quantization", "nvfp4_skel", "--device", device, "-o", library]
    mlc_llm("compile", config, *options, "--overrides", "prefill_chunk_size=2")
    image = library.read_bytes()
    for kernel in ("512x256_bf16", "256x256_bf16_residual", "768x256_bf16", "256x384_bf16_residual"):
        assert f"nvfp4_matmul_{kernel}_m1_2".encode() in image
    assert (
        b"dense_anyx256_bfloat16_bfloat16" in image
    )  # the head: MLC-LLM leaves the size of the vocabulary open
    assert b"__global__" not in image  # no CUDA source that is yet to be compiled
    images = [list_images(fatbin) for fatbin in extract_fatbins(image)]
    assert len(images) > 4 and all("cubin" in dict(found) for found in images)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mlc_compiles_mixtures_for_cuda_without_a_gpu(config):
    written = json.loads(config.read_text()) | {"model_type": "mixtral"}
    written["model_config"] |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    config.write_text(json.dumps(written))
    library = config.with_name("lib.so")
    mlc_llm(
        "compile", config, "--quantization", "nvfp4_skel", "--device", "nvidia/nvidia-h100", "-o", library
    )
    image = library.read_bytes()
    # gate_up, then down, of all rows; and of the one row of decode, which all of its experts read
    for kernel in ("4x768x256", "4x256x384", "selected_4x256x384", "shared_4x768x256"):
        assert f"nvfp4_grouped_{kernel}_bf16".encode() in image, kernel
    assert b"__global__" not in image


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "kind"), [("iphone", "metal"), ("android", "opencl")])
def test_mlc_refuses_other_targets(config, preset, kind):
    library = config.with_name("lib.tar")
    options = ["--quantization", "nvfp4_skel", "--device", preset, "-o", library]
    done = mlc_llm("compile", config, *options, check=False)
    assert done.returncode != 0 and not library.exists()
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(
            f"TargetError: target {kind}: no NVFP4 kernels; supported are cuda (sm_80, sm_86, sm_89, sm_90), llvm"
        )
    )
