import itertools
import logging

import numpy as np
import pytest
import tvm
from relax_modules import NUMPY, Weight, activations, assert_rounded_once, relative_error

from nvfp4_tvm import layout
from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.codegen.sass import count_instructions, sass
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_wgmma import GemmWgmma, wgmma_kernel
from nvfp4_tvm.schedules.gemm_wgmma_choice import choices
from nvfp4_tvm.schedules.gemm_wgmma_config import WgmmaConfig
from nvfp4_tvm.schedules.gemm_wgmma_ss_config import SharedWgmmaConfig
from nvfp4_tvm.target import cuda_target, resolve_target

HOPPER = get_arch("sm_90")
LARGE = WgmmaConfig(256, 2, 3, 3, 1)
MIDDLE = WgmmaConfig(128, 3, 4, 3, 1)
SMALL = WgmmaConfig(32, 1, 4, 4, 2, residents=3)
SHARED_LARGE = SharedWgmmaConfig(256, 4, 2, 1)
SHARED_MIDDLE = SharedWgmmaConfig(160, 4, 3, 2)

CASES = [
    (MatmulProblem(21504, 5376, MRange(17)), SHARED_LARGE),
    (MatmulProblem(100, 2880, MRange(17), "float16", "float16", bias=True, residual=True), SHARED_LARGE),
    (
        MatmulProblem(4096, 4096, MRange(17), "float16", "float16", activation="silu_mul", residual=True),
        SHARED_MIDDLE,
    ),
    (MatmulProblem(100, 2880, MRange(17), "float16", "float16", bias=True, residual=True), LARGE),
    (MatmulProblem(4096, 4096, MRange(17), out_dtype="float32"), MIDDLE),
    (MatmulProblem(8, 48, MRange(17)), SMALL),
    (
        MatmulProblem(4096, 4096, MRange(17), "float16", "float16", activation="silu_mul", residual=True),
        SMALL,
    ),
]


@pytest.mark.parametrize(("problem", "config"), CASES)
def test_machine_code(problem, config):
    kernel = wgmma_kernel(problem, config, 132)
    launch = kernel.launches[-1]
    assert launch.arch_specific and launch.pipeline == "tirx"
    module = tvm.IRModule({"main": launch.function.with_attr("global_symbol", "main")})
    with cuda_machine_code("sm_90a") as log:
        tvm.compile(module, cuda_target("sm_90a", HOPPER.shared_per_block).target, tir_pipeline="tirx")
    (usage,) = log.usage.values()
    assert usage.spill_stores == usage.spill_loads == usage.stack == usage.static_shared == 0
    shared = isinstance(config, SharedWgmmaConfig)
    fits = HOPPER.blocks_per_sm(config.threads, usage.registers, config.shared_bytes)
    assert fits >= (1 if shared else config.residents)
    listing = sass(log.modules[0].fatbin, "sm_90a")
    counts = count_instructions(listing)
    dtype = "BF16" if problem.x_dtype == "bfloat16" else "F16"
    assert [name for name in counts if name.startswith("HGMMA.64")]
    assert f"HGMMA.64x{config.tokens}x16.F32" + (".BF16" if dtype == "BF16" else "") in listing
    if shared:
        assert {"UTMALDG.2D", "STS.128"} <= {*counts}
        assert ("UTMASTG.2D" in counts) == (problem.out_N % 8 == 0)
        assert any(name.startswith("LDG") and ".128" in name for name in counts)
    else:
        assert any(name.startswith("LDGSTS") and name.endswith(".128") for name in counts)
        assert any(name.startswith("UBLKCP") for name in counts)
    # ptxas keeps wgmma asynchronous: one drain, after the loop, and a wait for the last but one in each group
    assert listing.count("WARPGROUP.DEPBAR.LE gsb0, 0x0") == 1
    assert listing.count("WARPGROUP.DEPBAR.LE gsb0, 0x1") == (2 if shared else 4)


def test_weights_are_read_before_and_activations_after_the_launch_before_has_ended():
    kernel = wgmma_kernel(MatmulProblem(4096, 4096), SMALL, 132)
    for launch in kernel.launches:
        assert list(launch.function.attrs["tirx.kernel_launch_params"])
    text = kernel.launches[-1].function.script()
    assert text.index('griddepcontrol("wait"') < text.index("T.address_of(x_tiles[")
    text = kernel.launches[0].function.script()
    wait = text.index('griddepcontrol("wait"')
    assert wait < text.index("T.address_of(x[") and wait < text.index("T.address_of(tiles[")
    text = wgmma_kernel(MatmulProblem(4096, 4096), SHARED_LARGE, 132).launches[-1].function.script()
    wait = text.index('griddepcontrol("wait"')
    assert text.index("T.address_of(words[") < wait < text.index("T.address_of(x_map)")


@pytest.mark.parametrize(
    ("problem", "target", "why"),
    [
        (MatmulProblem(64, 64, MRange(17, 32)), "llvm", "not cuda"),
        (MatmulProblem(64, 64, MRange(17, 32)), "cuda:sm_89", "no wgmma"),
        (MatmulProblem(64, 64, MRange(17, 32), "float32"), "cuda:sm_90", "float32"),
        (MatmulProblem(64, 64, MRange(1, 16)), "cuda:sm_90", "no one configuration"),
        (MatmulProblem(64, 64, MRange(17)), "cuda:sm_90", "no one configuration"),
    ],
)
def test_refusals(problem, target, why, caplog):
    with caplog.at_level(logging.DEBUG, "nvfp4_tvm.schedules.base"):
        assert GemmWgmma().apply(problem, resolve_target(target).target) is None
    assert why in caplog.text


@pytest.mark.parametrize(("N", "K"), [(8, 16), (43008, 5376)])
def test_one_kernel_for_each_range(N, K):
    rule, target = GemmWgmma(), resolve_target("cuda:sm_90").target
    ranges = rule.ranges(N, K, HOPPER)
    assert ranges == [m_range for m_range, _ in choices(N, K, HOPPER)]
    names = {rule.apply(MatmulProblem(N, K, m_range), target).name for m_range in ranges}
    assert 1 <= len(names) <= 8
    assert rule.ranges(N, K, get_arch("sm_89")) == []


def test_a_given_configuration_serves_every_m():
    rule, target = GemmWgmma(SMALL), resolve_target("cuda:sm_90").target
    assert rule.ranges(64, 64, HOPPER) == [MRange()]
    assert SMALL.name in rule.apply(MatmulProblem(64, 64), target).name


def on_gpu(array):
    return tvm.runtime.tensor(array, tvm.cuda(0))


RS_CONFIGS = [LARGE, MIDDLE, SMALL, WgmmaConfig(48, 2, 4, 3, 1, overhead=0)]
NUMBERS = [
    *itertools.product(((8, 48), (24, 16), (100, 2880), (1040, 1280)), ("float16", "bfloat16"), RS_CONFIGS),
    ((24, 16), "bfloat16", SHARED_LARGE),
    ((100, 2880), "float16", SHARED_LARGE),
    ((1040, 1280), "float16", SharedWgmmaConfig(192, 4, 3, 2, overhead=0)),
    ((1040, 1280), "bfloat16", SHARED_MIDDLE),
]


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("shape", "dtype", "config"), NUMBERS, ids=lambda value: value if isinstance(value, str) else None
)
def test_numbers_on_the_gpu(shape, dtype, config):
    N, K = shape
    rng = np.random.default_rng(N + K)
    weight = Weight.random(rng, N, K)
    if dtype == "float16":
        weight.rows[:] *= np.float32(1e-6)  # results within float16
    packed = layout.pack(*weight.arrays())
    function = _host_function(MatmulProblem(N, K, x_dtype=dtype, out_dtype=dtype, bias=True), config)
    for M in (17, 33, 100, 300):
        # NaN right behind the last activation: a kernel that read it would spread it
        memory = np.full(M * K + 256, np.nan).astype(NUMPY[dtype])
        memory[: M * K] = activations(rng, (M, K), dtype).reshape(-1)
        x = memory[: M * K].reshape(M, K)
        bias = (weight.rows[0] * activations(rng, (N,), "float32")).astype(NUMPY[dtype])
        view = on_gpu(memory)._create_view((M, K))
        inputs = [on_gpu(a) for a in (packed.words, packed.scales, packed.global_scale, bias)]
        outputs = []
        for _ in range(2):
            out = on_gpu(np.full((M, N), np.nan).astype(NUMPY[dtype]))
            function(M, view, *inputs, out)
            outputs.append(out.numpy())
        assert_rounded_once(outputs[0], x, weight, bias)
        assert outputs[0].tobytes() == outputs[1].tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    "config", [LARGE, SMALL, SHARED_LARGE, SHARED_MIDDLE], ids=lambda config: config.name
)
@pytest.mark.parametrize(("activation", "out_dtype"), [("silu_mul", "bfloat16"), (None, "float32")])
def test_epilogues_on_the_gpu(activation, out_dtype, config):
    N, K = 1056, 640
    rng = np.random.default_rng(N)
    weight = Weight.random(rng, N, K)
    weight.rows[:] = 10.0 ** rng.uniform(-4, -3, N)
    packed = layout.pack(*weight.arrays())
    problem = MatmulProblem(N, K, out_dtype=out_dtype, residual=True, activation=activation)
    function = _host_function(problem, config)
    for M in (20, 150):
        x = rng.standard_normal((M, K)).astype(NUMPY["bfloat16"])
        expected = np.asarray(x, np.float64) @ weight.exact().T
        if activation:
            gate, up = np.moveaxis(expected.reshape(M, N // 16, 2, 8), 2, 0)
            expected = (gate / (1 + np.exp(-gate)) * up).reshape(M, N // 2)
        residual = (rng.standard_normal(expected.shape) * expected.std()).astype(NUMPY[out_dtype])
        expected = expected + np.asarray(residual, np.float64)
        inputs = [on_gpu(a) for a in (packed.words, packed.scales, packed.global_scale, residual)]
        out = on_gpu(np.full(expected.shape, np.nan).astype(NUMPY[out_dtype]))
        function(M, on_gpu(x), *inputs, out)
        assert relative_error(out.numpy(), expected) <= (1e-5 if out_dtype == "float32" else 1.75e-3)


def _host_function(problem, config):
    """``f(M, x, words, scales, global_scale[, bias][, residual], out)`` of one configuration."""
    kernel = wgmma_kernel(problem, config, 132)
    names = [f"launch{index}" for index in range(len(kernel.launches))]
    module = tvm.IRModule(
        {
            name: launch.function.with_attr("global_symbol", name)
            for name, launch in zip(names, kernel.launches, strict=True)
        }
    )
    target = cuda_target("sm_90a", HOPPER.shared_per_block).target
    built = tvm.compile(module, target, tir_pipeline="tirx")
    operands = ["x", "words", "scales", "global_scale"]
    operands += [name for name in ("bias", "residual") if getattr(problem, name)] + ["out"]

    def run(M, *arrays):
        memory = dict(zip(operands, arrays, strict=True))
        for workspace in kernel.workspaces:
            shape = [int(extent) for extent in workspace.shape(M)]
            memory[workspace.name] = tvm.runtime.empty(shape, workspace.dtype, tvm.cuda(0))
        for name, launch in zip(names, kernel.launches, strict=True):
            built[name](*(memory[argument] for argument in launch.arguments))
        tvm.cuda(0).sync()

    return run
