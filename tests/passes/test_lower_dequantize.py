import tvm
from relax_modules import build_function, calls
from tvm import relax

from nvfp4_tvm import layout, op, pipeline
from nvfp4_tvm.codegen import BuildLog, cuda_machine_code
from nvfp4_tvm.codegen.dequantize import build_dequantize
from nvfp4_tvm.codegen.fatbin import extract_fatbins
from nvfp4_tvm.passes.lower_dequantize import LowerNVFP4Dequantize
from nvfp4_tvm.target import resolve_target

CUDA = resolve_target("cuda:sm_89")
N, K = 24, 144


def module(dtypes=("bfloat16",)):
    shapes = (layout.words_shape(N, K), layout.scales_shape(N, K), layout.global_scale_shape(N))
    inputs = [
        relax.Var(f"p{i}", relax.TensorType(shape, dtype))
        for i, (shape, dtype) in enumerate(zip(shapes, ("uint32", "uint32", "float32"), strict=True))
    ]

    def body(b):
        return b.emit(
            relax.Tuple(
                [b.emit(op.dequantize_packed(*inputs, N=N, K=K, out_dtype=dtype)) for dtype in dtypes]
            )
        )

    return build_function(inputs, body).get()


def test_cuda_calls_machine_code():
    log = BuildLog()
    mod = LowerNVFP4Dequantize(CUDA.target, log)(module(("bfloat16", "float16", "bfloat16")))
    assert calls(mod["main"]) == ["relax.call_dps_packed"] * 3
    names = [f"nvfp4_dequantize_{N}x{K}_{dtype}" for dtype in ("bfloat16", "float16")]
    assert [
        external.implements_function(names[i]) for i, external in enumerate(mod.attrs["external_mods"])
    ] == [
        True,
        True,
    ]
    assert list(log.usage) == [f"{name}_kernel" for name in names]


def test_other_targets_keep_the_operator():
    mod = LowerNVFP4Dequantize(resolve_target("llvm").target)(module())
    tvm.ir.assert_structural_equal(mod, module())


def test_the_kernel_arrives_in_a_library(tmp_path):
    with cuda_machine_code(CUDA.code_arch) as log:
        executable = relax.build(module(), CUDA.target, relax_pipeline=pipeline(CUDA.target))
    assert not any("nvfp4" in kernel for kernel in log.usage)
    executable.export_library(str(tmp_path / "lib.so"))
    (code,) = build_dequantize(N, K, "bfloat16", CUDA.target).log.modules
    assert code.fatbin in extract_fatbins((tmp_path / "lib.so").read_bytes())
