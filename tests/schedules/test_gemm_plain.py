from dataclasses import replace

import numpy as np
import pytest
import tvm
from relax_modules import HALF_ULP, NUMPY, Weight, activations, assert_rounded_once, tensor
from tvm import tirx

from nvfp4_tvm import layout
from nvfp4_tvm.codegen import matmul as codegen_matmul
from nvfp4_tvm.codegen.matmul import build_matmul
from nvfp4_tvm.schedules import dispatch
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
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


def gated(x, weight, bias, residual):
    """``silu(gate) * up + residual`` in float64 from interleaved rows."""
    product = np.asarray(x, np.float64) @ weight.exact().T + np.asarray(bias, np.float64)
    j = np.arange(product.shape[1] // 2)
    gate, up = product[:, j // 8 * 16 + j % 8], product[:, j // 8 * 16 + j % 8 + 8]
    return gate / (1 + np.exp(-gate)) * up + np.asarray(residual, np.float64)


def assert_gated(found, expected):
    """One rounding of the result; fp32's own errors of silu are a few units of its last place."""
    slack = 2.0**-18 * (np.abs(expected) + 1)
    assert (
        np.abs(np.asarray(found, np.float64) - expected)
        <= HALF_ULP[str(found.dtype)] * np.abs(expected) + slack
    ).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_activation_and_residual_of_the_block_computation(dtype):
    rng = np.random.default_rng(0)
    N, K, M = 48, 32, 5
    weight = Weight.random(rng, N, K)
    weight.rows[:] = 1e-3
    packed = layout.pack(*weight.arrays())
    problem = MatmulProblem(
        N, K, x_dtype="bfloat16", out_dtype=dtype, bias=True, residual=True, activation="silu_mul"
    )
    function = tvm.compile(tvm.IRModule({"main": matmul_prim_func(problem)}), target="llvm")["main"]
    x, bias = (rng.standard_normal(shape).astype(NUMPY["bfloat16"]) for shape in ((M, K), (N,)))
    residual = rng.standard_normal((M, N // 2)).astype(NUMPY[dtype])
    out = tensor(np.full((M, N // 2), np.nan).astype(NUMPY[dtype]))
    function(*map(tensor, (x, packed.words, packed.scales, packed.global_scale, bias, residual)), out)
    assert_gated(out.numpy(), gated(x, weight, bias, residual))


PROBLEM = MatmulProblem(96, 144, x_dtype="bfloat16", bias=True, residual=True)


@pytest.fixture
def only_plain(monkeypatch):
    """Dispatch tables of this family alone."""
    for arch in ("sm_80", "sm_86", "sm_89", "sm_90"):
        monkeypatch.setitem(dispatch.TABLES, arch, ((MRange(), (PlainGemm(),)),))
    monkeypatch.setattr(codegen_matmul, "_built", {})


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize("activation", [None, "silu_mul"])
def test_machine_code_for_every_architecture(arch, activation, only_plain):
    target = resolve_target(f"cuda:{arch}").target
    built = build_matmul(replace(PROBLEM, activation=activation), target)
    assert len(built.log.usage) == (1 if activation is None else 2)
    assert all(usage.spill_stores == usage.spill_loads == 0 for usage in built.log.usage.values())


def test_structure():
    kernel = PlainGemm().apply(PROBLEM, resolve_target("cuda:sm_89").target)
    (launch,) = kernel.launches
    assert kernel.name == "gemm_plain" and launch.pipeline == "s_tir" and not kernel.workspaces
    assert launch.arguments == ("x", "words", "scales", "global_scale", "bias", "residual", "out")
    text = launch.function.script()
    for thread in ("blockIdx.x", "blockIdx.y", "threadIdx.x"):
        assert f'thread="{thread}"' in text
    assert 'scope="local"' in text


def test_a_gate_meets_its_up_in_a_workspace():
    problem = replace(PROBLEM, activation="silu_mul")
    kernel = PlainGemm().apply(problem, resolve_target("cuda:sm_89").target)
    assert [launch.arguments for launch in kernel.launches] == [
        ("x", "words", "scales", "global_scale", "bias", "products"),
        ("products", "residual", "out"),
    ]
    (products,) = kernel.workspaces
    assert products.dtype == "float32" and products.shape(7) == (7, 96)


def test_m_is_symbolic_even_if_it_is_one_number():
    problem = replace(PROBLEM, M=MRange(5, 5))
    (launch,) = PlainGemm().apply(problem, resolve_target("cuda:sm_89").target).launches
    assert isinstance(launch.function.params[0].shape[0], tirx.Var)


def test_not_applicable_off_cuda():
    assert PlainGemm().apply(MatmulProblem(100, 144), resolve_target("llvm").target) is None


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("N", "K"), [(1, 16), (8, 48), (24, 144), (100, 2880), (520, 256)])
def test_numbers_on_the_gpu(N, K, dtype, only_plain):
    rng = np.random.default_rng(N + K)
    weight = Weight.random(rng, N, K)
    if dtype == "float16":
        weight.rows[:] *= np.float32(1e-6)  # results within float16
    packed = layout.pack(*weight.arrays())
    built = build_matmul(
        MatmulProblem(N, K, x_dtype=dtype, out_dtype=dtype, bias=True), resolve_target("auto").target
    )
    workspace = tvm.runtime.empty((16,), "uint8", tvm.cuda(0))
    for M in (1, 3, 8, 17, 33, 100, 777):
        x, bias = activations(rng, (M, K), dtype), (weight.rows[0] * activations(rng, (N,), "float32"))
        bias = bias.astype(NUMPY[dtype])
        arrays = (x, packed.words, packed.scales, packed.global_scale, bias)
        inputs = [tvm.runtime.tensor(array, tvm.cuda(0)) for array in arrays]
        outputs = []
        for _ in range(2):
            out = tvm.runtime.tensor(np.full((M, N), np.nan).astype(NUMPY[dtype]), tvm.cuda(0))
            built.function(*inputs, out, workspace)
            outputs.append(out.numpy())
        assert_rounded_once(outputs[0], x, weight, bias)
        assert outputs[0].tobytes() == outputs[1].tobytes()
