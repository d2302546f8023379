import numpy as np
import pytest
import tvm
from cuda_on_host import kernel_on_host
from relax_modules import NUMPY, Weight

from nvfp4_tvm import layout, numerics
from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.codegen.sass import count_instructions, sass
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.dequant import CONVERSIONS, dequantize_kernel
from nvfp4_tvm.target import cuda_target, resolve_target


@pytest.mark.parametrize("arch", list(ARCHS))
def test_machine_code_for_every_architecture(arch):
    target = cuda_target(arch).target
    for N, K, dtype in [(100, 144, "bfloat16"), (64, 256, "float16"), (8, 16, "float32")]:
        kernel = dequantize_kernel(N, K, dtype, target)
        (launch,) = kernel.launches
        assert launch.arguments == ("words", "scales", "global_scale", "out")
        module = tvm.IRModule({"main": launch.function.with_attr("global_symbol", "main")})
        with cuda_machine_code(arch) as log:
            tvm.compile(module, target, tir_pipeline=launch.pipeline)
        (usage,) = log.usage.values()
        assert usage.spill_stores == usage.spill_loads == usage.stack == 0
        counts = count_instructions(sass(log.modules[0].fatbin, arch))
        assert any(name.startswith("STG.E.128") for name in counts), counts


def test_more_than_two_to_the_31_elements_are_indexed_in_64_bits():
    for N, wide in [(1 << 16, False), (1 << 18, True)]:
        kernel = dequantize_kernel(N, 1 << 14, "bfloat16", cuda_target("sm_90").target)
        assert ('"int64"' in kernel.launches[0].function.script()) == wide


def test_not_applicable_off_cuda():
    assert dequantize_kernel(16, 16, "bfloat16", resolve_target("llvm").target) is None


def test_refusals_say_why():
    target = cuda_target("sm_80").target
    with pytest.raises(ShapeError, match="out_dtype is int8, expected one of bfloat16, float16, float32"):
        dequantize_kernel(16, 16, "int8", target)
    with pytest.raises(ShapeError, match="K must be a positive multiple of 16"):
        dequantize_kernel(16, 24, "bfloat16", target)


def random_weight(N, K, dtype):
    weight = Weight.random(np.random.default_rng(N + K), N, K)
    if dtype == "float16":
        weight.rows[:] = np.minimum(weight.rows, np.float32(10))
    packed = layout.pack(*weight.arrays())
    return weight, {name: getattr(packed, name) for name in ("words", "scales", "global_scale")}


def empty(N, K, dtype):
    return np.full((N, K), np.nan).astype(NUMPY[dtype])


def assert_equal(found, weight):
    exact = numerics.dequantize(weight.codes, weight.scales, np.float32(1), np.float32)
    expected = (exact * weight.rows[:, None]).astype(found.dtype)
    assert np.array_equal(found.astype(np.float32), expected.astype(np.float32))


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", list(CONVERSIONS))
@pytest.mark.parametrize(("N", "K"), [(1, 16), (8, 48), (24, 144), (100, 2880), (520, 256)])
def test_every_bit_on_the_gpu(N, K, dtype):
    weight, operands = random_weight(N, K, dtype)
    capability = tvm.cuda(0).compute_version.replace(".", "")
    target = tvm.target.Target({"kind": "cuda", "arch": f"sm_{capability}"}, host="llvm")
    (launch,) = dequantize_kernel(N, K, dtype, target).launches
    module = tvm.IRModule({"main": launch.function.with_attr("global_symbol", "main")})
    function = tvm.compile(module, target, tir_pipeline=launch.pipeline)["main"]
    out = tvm.runtime.tensor(empty(N, K, dtype), tvm.cuda(0))
    function(*(tvm.runtime.tensor(array, tvm.cuda(0)) for array in operands.values()), out)
    assert_equal(out.numpy(), weight)


@pytest.mark.parametrize(
    ("N", "K", "dtype"), [(1, 16, "float32"), (24, 144, "bfloat16"), (100, 272, "float16")]
)
def test_every_bit_on_the_cpu(N, K, dtype):
    weight, operands = random_weight(N, K, dtype)
    kernel = dequantize_kernel(N, K, dtype, cuda_target("sm_80").target)
    found = kernel_on_host(kernel, cuda_target("sm_80").target)(operands, empty(N, K, dtype))
    assert_equal(found, weight)
