from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tvm
from cuda_on_host import kernel_on_host
from dense_reference import assert_right
from relax_modules import NUMPY

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.codegen.dense import build_dense
from nvfp4_tvm.codegen.sass import count_instructions, sass
from nvfp4_tvm.schedules.dense import choose, dense_kernel, dense_kernels, fits
from nvfp4_tvm.schedules.dense_kernel import STEP_K
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.target import cuda_target, resolve_target

HEAD = DenseProblem(128256, 4096, "bfloat16", "bfloat16")


@pytest.mark.parametrize("problem", [HEAD, DenseProblem(8, 24, "float16", "float32")], ids=str)
def test_every_m_has_a_kernel(problem):
    ranges = [m_range for m_range, _ in choose(problem)]
    assert ranges[0].low == 1 and ranges[-1].high is None
    assert all(lower.high + 1 == upper.low for lower, upper in pairwise(ranges))
    for m_range, config in choose(problem):
        # One block has all tokens of a range that ends, and each of its warps a step
        assert m_range.high is None or config.tokens >= m_range.high
        assert config.KS <= -(-problem.K // STEP_K)
    names = [kernel.name for _, kernel in dense_kernels(problem, cuda_target("sm_90").target)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("arch", list(ARCHS))
@pytest.mark.parametrize(
    "problem",
    [
        HEAD,
        DenseProblem(100, 200, "float16", "float32"),
        DenseProblem(1 << 18, 1 << 14, "bfloat16", "bfloat16"),
        replace(HEAD, N=None),
    ],
    ids=str,
)
def test_machine_code_for_every_architecture(arch, problem):
    target = cuda_target(arch).target
    built, kernels = build_dense(problem, target), dense_kernels(problem, target)
    assert len(built.log.usage) == len(kernels)
    for usage in built.log.usage.values():
        assert usage.spill_stores == usage.spill_loads == usage.stack == 0
    for module, (_, kernel) in zip(built.log.modules, kernels, strict=True):
        counts = count_instructions(sass(module.fatbin, arch))
        mma = [name for name in counts if name.startswith("HMMA.16816.F32")]
        assert mma and all(("BF16" in name) == (problem.dtype == "bfloat16") for name in mma), kernel.name
        assert any(name.startswith("LDG.E") and ".128" in name for name in counts), kernel.name


@pytest.mark.parametrize(
    ("problem", "target", "expected"),
    [
        (HEAD, "cuda:sm_80", True),
        (HEAD, "llvm", False),
        (DenseProblem(8, 24, "float32", "float32"), "cuda:sm_80", False),
        (DenseProblem(8, 20, "float16", "float16"), "cuda:sm_80", False),
    ],
)
def test_what_has_kernels(problem, target, expected):
    target = resolve_target(target).target
    assert fits(problem, target) is expected
    assert (dense_kernels(problem, target) is not None) is expected


@pytest.mark.parametrize(("m_range", "config"), choose(replace(HEAD, N=None)), ids=str)
def test_numbers_of_an_open_head_on_the_cpu(m_range, config):
    """Of every kernel that a library of MLC-LLM has for its head."""
    kernel = dense_kernel(replace(HEAD, N=None), config)
    run = kernel_on_host(kernel, cuda_target("sm_90").target)
    rng = np.random.default_rng(m_range.low)
    N, K = 2 * config.rows + 5, HEAD.K
    weight = rng.standard_normal((N, K)).astype(NUMPY["bfloat16"])
    for M in (m_range.low, m_range.high or config.tokens + 1):
        x = rng.standard_normal((M, K)).astype(NUMPY["bfloat16"])
        out = np.full((M, N), np.nan).astype(NUMPY["bfloat16"])
        found = [run({"x": x, "weight": weight}, out, order=order) for order in (0, 1)]
        assert found[0].tobytes() == found[1].tobytes()
        assert_right(found[0], x, weight, "bfloat16")


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("N", "K"), [(1, 8), (20, 72), (100, 2880), (4096, 4096), (16400, 520)])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("dtype", "out_dtype"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("bfloat16", "float32")]
)
def test_numbers_on_the_gpu(N, K, dtype, out_dtype, known):
    rng = np.random.default_rng(N + K)
    problem = DenseProblem(N if known else None, K, dtype, out_dtype)
    function = build_dense(problem, resolve_target("auto").target).function
    weight = rng.standard_normal((N, K)).astype(NUMPY[dtype])
    gpu = tvm.cuda(0)
    for M in (1, 3, 8, 11, 17, 33, 64, 100, 777):
        x = rng.standard_normal((M, K)).astype(NUMPY[dtype])
        found = []
        for _ in range(2):
            out = tvm.runtime.tensor(np.full((M, N), np.nan).astype(NUMPY[out_dtype]), gpu)
            function(tvm.runtime.tensor(x, gpu), tvm.runtime.tensor(weight, gpu), out)
            found.append(out.numpy())
        assert found[0].tobytes() == found[1].tobytes()
        assert_right(found[0], x, weight, out_dtype)
