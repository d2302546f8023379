import numpy as np
import pytest
import tvm
from relax_modules import NUMPY, Weight, activations, assert_rounded_once, tensor

from nvfp4_tvm import layout
from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.dispatch import dispatch
from nvfp4_tvm.schedules.gemm_plain import PlainGemm, matmul_prim_func
from nvfp4_tvm.target import resolve_target


@pytest.mark.parametrize(("N", "K"), [(1, 16), (24, 48), (100, 144)])
@pytest.mark.parametrize(
    ("dtype", "out_dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")]
)
def test_the_block_computation_on_the_cpu(N, K, dtype, out_dtype):
    rng = np.random.default_rng(N + K)
    weight = Weight.random(rng, N, K)
    packed = layout.pack(*weight.arrays())
    problem = MatmulProblem(N, K, x_dtype=dtype, out_dtype=out_dtype, bias=True)
    function = tvm.compile(tvm.IRModule({"main": matmul_prim_func(problem, pad_M=8)}), target="llvm")
    for M in (1, 3, 8, 17):
        x, bias = activations(rng, (M, K), dtype), activations(rng, (N,), dtype)
        out = tensor(np.full((M, N), np.nan).astype(NUMPY[out_dtype]))
        arrays = (x, packed.words, packed.scales, packed.global_scale, bias)
        function["main"](*map(tensor, arrays), out)
        assert_rounded_once(out.numpy(), x, weight, bias)


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90"])
def test_machine_code_for_every_architecture(arch):
    target = resolve_target(f"cuda:{arch}")
    kernel = PlainGemm().apply(MatmulProblem(100, 144, x_dtype="bfloat16"), target.target)
    with cuda_machine_code(target.code_arch) as log:
        tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target.target)
    (usage,) = log.usage.values()
    assert usage.spill_stores == usage.spill_loads == 0


def test_structure():
    kernel = PlainGemm().apply(MatmulProblem(100, 144), resolve_target("cuda:sm_89").target)
    text = kernel.script()
    assert int(kernel.attrs["tirx.is_scheduled"]) == 1
    for thread in ("blockIdx.x", "blockIdx.y", "threadIdx.x"):
        assert f'thread="{thread}"' in text
    assert 'scope="local"' in text


def test_static_m():
    kernel = PlainGemm().apply(MatmulProblem(100, 144, MRange(5, 5)), resolve_target("cuda:sm_89").target)
    assert int(kernel.params[0].shape[0]) == 5


def test_not_applicable_off_cuda():
    assert PlainGemm().apply(MatmulProblem(100, 144), resolve_target("llvm").target) is None


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("N", "K"), [(1, 16), (8, 48), (24, 144), (100, 2880), (520, 256)])
def test_numbers_on_the_gpu(N, K, dtype):
    rng = np.random.default_rng(N + K)
    weight = Weight.random(rng, N, K)
    if dtype == "float16":
        weight.rows[:] *= np.float32(1e-6)  # results within float16
    packed = layout.pack(*weight.arrays())
    capability = tvm.cuda(0).compute_version.replace(".", "")
    target = tvm.target.Target({"kind": "cuda", "arch": f"sm_{capability}"}, host="llvm")
    problem = MatmulProblem(N, K, x_dtype=dtype, out_dtype=dtype, bias=True)
    kernel = dispatch(problem, target).with_attr("global_symbol", "main")
    function = tvm.compile(tvm.IRModule({"main": kernel}), target)["main"]
    for M in (1, 3, 8, 17, 33, 100, 777):
        x, bias = activations(rng, (M, K), dtype), (weight.rows[0] * activations(rng, (N,), "float32"))
        bias = bias.astype(NUMPY[dtype])
        arrays = (x, packed.words, packed.scales, packed.global_scale, bias)
        inputs = [tvm.runtime.tensor(array, tvm.cuda(0)) for array in arrays]
        outputs = []
        for _ in range(2):
            out = tvm.runtime.tensor(np.full((M, N), np.nan).astype(NUMPY[dtype]), tvm.cuda(0))
            function(*inputs, out)
            outputs.append(out.numpy())
        assert_rounded_once(outputs[0], x, weight, bias)
        assert outputs[0].tobytes() == outputs[1].tobytes()
