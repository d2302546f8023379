import logging
import re
from itertools import pairwise

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from relax_modules import NUMPY, Weight, activations, assert_rounded_once, relative_error

from nvfp4_tvm import layout
from nvfp4_tvm.arch import ARCHS, MAX_THREADS_PER_BLOCK, STATIC_SHARED_BYTES
from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.codegen.sass import count_instructions, sass
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemv import MAX_M, Gemv, choose
from nvfp4_tvm.target import cuda_target, resolve_target


def compile_for(arch, problem, target=None):
    """The family's kernel for a problem, compiled: ``(CudaKernel, BuildLog, executable)``."""
    kernel = Gemv().apply(problem, target or cuda_target(arch).target)
    (launch,) = kernel.launches
    module = tvm.IRModule({"main": launch.function.with_attr("global_symbol", "main")})
    with cuda_machine_code(arch) as log:
        executable = tvm.compile(module, cuda_target(arch).target, tir_pipeline=launch.pipeline)
    return kernel, log, executable


ODD = MatmulProblem(100, 2880, MRange(1, 16), "float16", "float16", bias=True, residual=True)
MOST_REGISTERS = MatmulProblem(4096, 4096, MRange(25, 32))


def check_machine_code(arch, problem):
    kernel, log, _ = compile_for(arch, problem)
    (usage,) = log.usage.values()
    assert usage.spill_stores == usage.spill_loads == usage.stack == 0, problem
    config = choose(problem.N, problem.K, problem.M.high, ARCHS[arch])
    blocks = ARCHS[arch].blocks_per_sm(config.threads, usage.registers, usage.static_shared)
    assert blocks >= max(1, config.resident)
    assert usage.static_shared == config.shared_bytes
    counts = count_instructions(sass(log.modules[0].fatbin, arch))
    mma = [name for name in counts if name.startswith("HMMA.16816.F32")]
    assert mma and all(("BF16" in name) == (problem.x_dtype == "bfloat16") for name in mma)
    # The words of a tile are two loads, the activations of a 128-block four for every eight tokens
    assert sum(n for name, n in counts.items() if name.startswith("LDG.E") and ".128" in name) >= 6
    assert kernel.name.startswith("gemv_m")


@pytest.mark.parametrize(
    ("arch", "problem"),
    # ptxas takes ten seconds for the second; test_kernel_resources.py has every architecture's table
    [*((arch, ODD) for arch in ARCHS), ("sm_80", MOST_REGISTERS), ("sm_90", MOST_REGISTERS)],
)
def test_machine_code_for_every_architecture(arch, problem):
    check_machine_code(arch, problem)


@pytest.mark.parametrize(
    "problem",
    [
        MatmulProblem(43008, 5376, MRange(1, 8), activation="silu_mul"),
        MatmulProblem(43008, 5376, MRange(9, 16)),
        MatmulProblem(3840, 15360, MRange(17, 24), "float16", "float16", bias=True, residual=True),
        MatmulProblem(3840, 15360, MRange(1, 8), out_dtype="float32"),
        MatmulProblem(8192, 28672, MRange(1, 8), "float16", "float16"),
        MatmulProblem(4096, 4096, MRange(9, 16), residual=True),
    ],
)
def test_machine_code_of_other_configurations(problem):
    check_machine_code("sm_89", problem)


def test_dependent_launch_waits_before_it_touches_what_others_write():
    for arch in ("sm_89", "sm_90"):
        problem = MatmulProblem(4096, 4096, MRange(1, 8), bias=True, residual=True)
        kernel, log, _ = compile_for(arch, problem)
        source = log.modules[0].source
        body = source[source.index("main_kernel(", source.rindex("__launch_bounds__")) :]
        body = body[body.index("{") :]
        attribute = kernel.launches[0].function.attrs.get("tirx.kernel_launch_params", [])
        assert ("griddepcontrol" in body) == (arch == "sm_90") == bool(len(attribute))
        if arch == "sm_90":
            wait, trigger = body.index("griddepcontrol_wait"), body.index("griddepcontrol_launch_dependents")
            assert body.index("words_ptr[") < wait < trigger
            for name in ("x_ptr[", "bias_ptr[", "residual_ptr[", "out_ptr["):
                assert wait < body.index(name), name


@pytest.mark.parametrize(
    ("problem", "target", "why"),
    [
        (MatmulProblem(64, 64, MRange(1, 8)), "llvm", "not cuda"),
        (MatmulProblem(64, 64, MRange(1, 8), "float32"), "cuda:sm_90", "float32"),
        (MatmulProblem(64, 64, MRange(1, 33)), "cuda:sm_90", "at most 32"),
        (MatmulProblem(64, 64), "cuda:sm_90", "at most 32"),
    ],
)
def test_refusals_say_why(problem, target, why, caplog):
    with caplog.at_level(logging.DEBUG, "nvfp4_tvm.schedules.base"):
        assert Gemv().apply(problem, resolve_target(target).target) is None
    assert why in caplog.text


@pytest.mark.parametrize(
    ("N", "K", "highest"), [(8, 16, 32), (4096, 4096, 32), (21504, 5376, 24), (43008, 5376, 16)]
)
def test_ranges_end_where_the_gemms_are_faster(N, K, highest):
    for arch in ARCHS.values():
        ranges = Gemv().ranges(N, K, arch)
        assert ranges[0].low == 1 and ranges[-1].high == highest <= MAX_M
        assert all(lower.high + 1 == upper.low for lower, upper in pairwise(ranges))
        # One configuration, and one number of eights of tokens, for each
        assert all(-(-m_range.low // 8) == -(-m_range.high // 8) for m_range in ranges)


def test_weights_are_loaded_before_the_launch_before_has_ended():
    """ptxas may move loads of constants down, behind the wait."""
    _, log, _ = compile_for("sm_90", MatmulProblem(4096, 4096, MRange(1, 8)))
    listing = sass(log.modules[0].fatbin, "sm_90")
    before_the_wait = listing[: listing.index("ACQBULK")]
    assert re.search(r"LDG\.E\.NA\.\S*128\.CONSTANT", before_the_wait)


def test_m_is_symbolic_and_arguments_follow_the_problem():
    for bias in (False, True):
        for residual in (False, True):
            problem = MatmulProblem(64, 64, MRange(3, 3), bias=bias, residual=residual)
            (launch,) = Gemv().apply(problem, cuda_target("sm_80").target).launches
            optional = ["bias"] * bias + ["residual"] * residual
            assert list(launch.arguments) == ["x", "words", "scales", "global_scale", *optional, "out"]
            assert isinstance(launch.function.params[0].shape[0], tvm.tirx.Var)


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 300_000),
    st.integers(1, 4096).map(lambda groups: 16 * groups),
    st.integers(1, MAX_M // 8),
    st.sampled_from(list(ARCHS.values())),
)
def test_choice_is_launchable_and_covers_the_weight(N, K, NB, arch):
    config = choose(N, K, 8 * NB, arch)
    assert config == choose(N, K, 8 * NB, arch)
    assert 32 <= config.threads <= MAX_THREADS_PER_BLOCK
    assert config.shared_bytes <= STATIC_SHARED_BYTES
    tiles, steps = layout.tiles(N, K)
    assert config.blocks(N) * config.NT >= tiles > (config.blocks(N) - 1) * config.NT
    assert config.steps(K) * config.KS >= steps
    assert config.KS <= steps
    assert config.pdl == arch.pdl


def run_on_gpu(executable, arguments, operands, out):
    """Run twice on poisoned outputs; return the output, bitwise the same both times."""
    device = tvm.cuda(0)
    inputs = [tvm.runtime.tensor(operands[name], device) for name in arguments[:-1]]
    outputs = []
    for _ in range(2):
        result = tvm.runtime.tensor(out, device)
        executable(*inputs, result)
        outputs.append(result.numpy())
    assert outputs[0].tobytes() == outputs[1].tobytes()
    return outputs[0]


def needs_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")(test))


def local_build(problem):
    """The kernel for the GPU in this machine: ``(argument names, function)``."""
    target = tvm.target.Target(
        {"kind": "cuda", "arch": f"sm_{tvm.cuda(0).compute_version.replace('.', '')}"}, host="llvm"
    )
    (launch,) = Gemv().apply(problem, target).launches
    module = tvm.IRModule({"main": launch.function.with_attr("global_symbol", "main")})
    with cuda_machine_code(str(target.attrs["arch"])):
        return launch.arguments, tvm.compile(module, target, tir_pipeline=launch.pipeline)["main"]


class Guarded:
    """NaN all around an array in GPU memory: what a kernel reads beyond it shows in its result."""

    def __init__(self, array):
        flat = np.full(array.size + 4096, np.nan).astype(array.dtype)
        flat[: array.size] = array.reshape(-1)
        self.memory = tvm.runtime.tensor(flat, tvm.cuda(0))
        self.view = self.memory._create_view(array.shape)


@needs_gpu
@pytest.mark.parametrize(
    ("N", "K", "dtype", "out_dtype"),
    [
        (8, 16, "bfloat16", "bfloat16"),
        (24, 48, "float16", "float16"),
        (100, 2880, "bfloat16", "float32"),
        (1, 160, "float16", "float32"),
        (520, 1024, "bfloat16", "float16"),
        (4096, 528, "float16", "bfloat16"),
        (8448, 1152, "bfloat16", "bfloat16"),
    ],
)
def test_numbers_on_the_gpu(N, K, dtype, out_dtype):
    rng = np.random.default_rng(N + K)
    weight = Weight.random(rng, N, K)
    if "float16" in (dtype, out_dtype):
        weight.rows[:] = np.minimum(weight.rows, np.float32(1e-6))  # results within float16
    packed = layout.pack(*weight.arrays())
    for high in range(8, MAX_M + 1, 8):
        problem = MatmulProblem(N, K, MRange(1, high), dtype, out_dtype, bias=True)
        arguments, function = local_build(problem)
        for M in {1, 3, high - 5, high}:
            x = activations(rng, (M, K), dtype)
            bias = (weight.rows * rng.standard_normal(N)).astype(NUMPY[dtype])
            operands = {
                "x": x,
                "words": packed.words,
                "scales": packed.scales,
                "global_scale": packed.global_scale,
                "bias": bias,
            }
            poisoned = np.full((M, N), np.nan).astype(NUMPY[out_dtype])
            found = run_on_gpu(function, arguments, operands, poisoned)
            assert_rounded_once(found, x, weight, bias)


@needs_gpu
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", [None, "silu_mul"])
def test_epilogues_on_the_gpu(residual, activation):
    rng = np.random.default_rng(7)
    N, K, M = 96, 272, 11
    weight = Weight.random(rng, N, K)
    weight.rows[:] = 1e-3
    packed = layout.pack(*weight.arrays())
    problem = MatmulProblem(N, K, MRange(9, 16), bias=True, residual=residual, activation=activation)
    arguments, function = local_build(problem)
    x, bias = rng.standard_normal((M, K)), rng.standard_normal(N)
    added = rng.standard_normal((M, problem.out_N))
    x, bias, added = (array.astype(NUMPY["bfloat16"]) for array in (x, bias, added))
    operands = {
        "x": x,
        "words": packed.words,
        "scales": packed.scales,
        "global_scale": packed.global_scale,
        "bias": bias,
        "residual": added,
    }
    poisoned = np.full((M, problem.out_N), np.nan).astype(NUMPY["bfloat16"])
    found = run_on_gpu(function, arguments, operands, poisoned)
    expected = x.astype(np.float64) @ weight.exact().T + bias.astype(np.float64)
    if activation == "silu_mul":
        tiles = expected.reshape(M, -1, 2, 8)
        gate, up = (tiles[:, :, half].reshape(M, -1) for half in range(2))
        expected = gate / (1 + np.exp(-gate)) * up
    if residual:
        expected = expected + added.astype(np.float64)
    assert relative_error(found, expected) <= 1.75e-3


@needs_gpu
def test_nothing_beyond_the_arrays_is_read_or_written():
    rng = np.random.default_rng(3)
    for N, K, M in [(24, 48, 3), (40, 144, 8), (100, 2880, 13)]:
        weight = Weight.random(rng, N, K)
        packed = layout.pack(*weight.arrays())
        _, function = local_build(MatmulProblem(N, K, MRange(1, 16), "bfloat16", "float32"))
        x = activations(rng, (M, K), "bfloat16")
        guarded = Guarded(x)
        out = Guarded(np.full((M, N), np.nan, np.float32))
        weights = [
            tvm.runtime.tensor(a, tvm.cuda(0)) for a in (packed.words, packed.scales, packed.global_scale)
        ]
        function(guarded.view, *weights, out.view)
        assert_rounded_once(out.view.numpy(), x, weight)
        assert np.isnan(out.memory.numpy()[M * N :]).all()
