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
from nvfp4_tvm.schedules.gemm_cluster import GemmCluster, cluster_kernel
from nvfp4_tvm.schedules.gemm_cluster_choice import choices
from nvfp4_tvm.schedules.gemm_cluster_config import ClusterConfig
from nvfp4_tvm.target import cuda_target, resolve_target

HOPPER = get_arch("sm_90")
LARGE = ClusterConfig(128, 2, 2, 8, 4, 3)
SMALL = ClusterConfig(48, 3, 1, 3, 6, 4)
ALONE = ClusterConfig(32, 1, 1, 1, 3, 3, residents=2)


@pytest.mark.parametrize(
    ("problem", "config"),
    [
        (MatmulProblem(4096, 4096), LARGE),
        (MatmulProblem(100, 2880, x_dtype="float16", out_dtype="float16", bias=True, residual=True), SMALL),
        (MatmulProblem(96, 640, out_dtype="float32", activation="silu_mul"), ALONE),
    ],
)
def test_machine_code(problem, config):
    (launch,) = cluster_kernel(problem, config).launches
    module = tvm.IRModule({"main": launch.function.with_attr("global_symbol", "main")})
    with cuda_machine_code("sm_90a") as log:
        tvm.compile(module, cuda_target("sm_90a", HOPPER.shared_per_block).target, tir_pipeline="tirx")
    (usage,) = log.usage.values()
    assert usage.spill_stores == usage.spill_loads == usage.stack == usage.static_shared == 0
    assert usage.registers <= config.registers
    listing = sass(log.modules[0].fatbin, "sm_90a")
    counts = count_instructions(listing)
    assert f"HGMMA.64x{config.tokens}x16.F32" in listing
    # Weights 16 bytes at a time, activations 4
    assert any(name.startswith("LDGSTS") and name.endswith(".128") for name in counts)
    assert counts["LDGSTS.E"] >= config.tokens // 2
    assert ("UCGABAR_WAIT" in listing) == (config.cluster > 1)
    # ptxas keeps wgmma asynchronous: one drain, after the loop, and a wait for the last but one in each group
    assert listing.count("WARPGROUP.DEPBAR.LE gsb0, 0x0") == 1
    assert listing.count("WARPGROUP.DEPBAR.LE gsb0, 0x1") == 2 * config.warp_tiles


def test_activations_are_read_after_the_launch_before_has_ended():
    (launch,) = cluster_kernel(MatmulProblem(4096, 4096, residual=True), SMALL).launches
    assert list(launch.function.attrs["tirx.kernel_launch_params"])
    text = launch.function.script()
    assert text.index('griddepcontrol("wait"') < text.index("T.address_of(x[")
    assert text.rindex('griddepcontrol("wait"') < text.index("residual[")


@pytest.mark.parametrize(
    ("problem", "target", "why"),
    [
        (MatmulProblem(64, 64, MRange(17, 32)), "llvm", "not cuda"),
        (MatmulProblem(64, 64, MRange(17, 32)), "cuda:sm_89", "no wgmma"),
        (MatmulProblem(64, 64, MRange(17, 32), "float32"), "cuda:sm_90", "float32"),
        (MatmulProblem(43008, 5376, MRange(64, 64)), "cuda:sm_90", "others are faster"),
        (MatmulProblem(64, 64, MRange(17)), "cuda:sm_90", "no one configuration"),
    ],
)
def test_refusals(problem, target, why, caplog):
    with caplog.at_level(logging.DEBUG, "nvfp4_tvm.schedules.base"):
        assert GemmCluster().apply(problem, resolve_target(target).target) is None
    assert why in caplog.text


def test_one_kernel_for_each_range():
    rule, target = GemmCluster(), resolve_target("cuda:sm_90").target
    ranges = rule.ranges(4096, 4096, HOPPER)
    assert ranges == [m_range for m_range, _ in choices(4096, 4096, HOPPER)]
    assert all(rule.apply(MatmulProblem(4096, 4096, m_range), target) for m_range in ranges)
    assert rule.ranges(4096, 4096, get_arch("sm_89")) == []
    assert GemmCluster(SMALL).ranges(4096, 4096, HOPPER) == [MRange()]


def on_gpu(array):
    return tvm.runtime.tensor(array, tvm.cuda(0))


GPU_CONFIGS = [LARGE, SMALL, ALONE, ClusterConfig(96, 2, 2, 2, 5, 3)]


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("config", GPU_CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("N", "K"), [(8, 48), (24, 16), (100, 2880), (1040, 1280)])
def test_numbers_on_the_gpu(N, K, dtype, config):
    rng = np.random.default_rng(N + K)
    weight = Weight.random(rng, N, K)
    if dtype == "float16":
        weight.rows[:] *= np.float32(1e-6)  # results within float16
    packed = layout.pack(*weight.arrays())
    function = _host_function(MatmulProblem(N, K, x_dtype=dtype, out_dtype=dtype, bias=True), config)
    for M in (1, 17, 33, 100, 300):
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
            function(view, *inputs, out)
            outputs.append(out.numpy())
        assert_rounded_once(outputs[0], x, weight, bias)
        assert outputs[0].tobytes() == outputs[1].tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("config", [LARGE, SMALL], ids=lambda config: config.name)
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
        function(on_gpu(x), *inputs, out)
        assert relative_error(out.numpy(), expected) <= (1e-5 if out_dtype == "float32" else 1.75e-3)


def _host_function(problem, config):
    """``f(x, words, scales, global_scale[, bias][, residual], out)`` of one configuration."""
    (launch,) = cluster_kernel(problem, config).launches
    module = tvm.IRModule({"main": launch.function.with_attr("global_symbol", "main")})
    built = tvm.compile(module, cuda_target("sm_90a", HOPPER.shared_per_block).target, tir_pipeline="tirx")

    def run(*arrays):
        built["main"](*arrays)
        tvm.cuda(0).sync()

    return run
