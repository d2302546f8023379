import pytest
import tvm
import tvm_ffi
from tvm import s_tir

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_mma_choice import CANDIDATES
from nvfp4_tvm.schedules.gemm_mma_compute import gemm_mma
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_schedule import schedule_gemm_mma
from nvfp4_tvm.schedules.gemm_plain import matmul_prim_func
from nvfp4_tvm.schedules.space_mma import SPACE, config_of, design_space, replay, scheduled

SM_89 = ARCHS["sm_89"]
PROBLEM = MatmulProblem(4096, 4096, MRange(17, 256))


@pytest.fixture(scope="module")
def sampled():
    """Schedules that MetaSchedule's generator samples from the problem's definition."""
    generator = design_space(PROBLEM, SM_89)
    mod = tvm.IRModule({"main": matmul_prim_func(PROBLEM)})
    return [sch for _ in range(3) for sch in generator.generate_design_space(mod)]


def test_samples_are_configurations_that_fit(sampled):
    configs = [config_of(sch.trace) for sch in sampled]
    assert len(configs) == 3
    for config in configs:
        assert SPACE.legal(config, PROBLEM.N, PROBLEM.K, PROBLEM.M, SM_89)


def test_a_trace_replays_to_the_same_schedule(sampled):
    for sch in sampled:
        again = replay(PROBLEM, sch.trace)
        assert tvm_ffi.structural_equal(sch.mod, again.mod)
        assert config_of(again.trace) == config_of(sch.trace)
        # and to what the family itself makes of the configuration
        plain = schedule_gemm_mma(PROBLEM, config_of(sch.trace))
        assert tvm_ffi.structural_equal(sch.mod, plain.mod)


def test_a_trace_survives_json():
    config = SPACE.candidates(PROBLEM.N, PROBLEM.K, PROBLEM.M, SM_89)[0]
    sch = scheduled(PROBLEM, config, SM_89)
    again = s_tir.Schedule(gemm_mma(PROBLEM, config))
    type(sch.trace).apply_json_to_schedule(sch.trace.as_json(), again)
    assert tvm_ffi.structural_equal(sch.mod, again.mod)


def test_other_traces_and_configurations_are_refused():
    plain = schedule_gemm_mma(PROBLEM, CANDIDATES[7].config)
    with pytest.raises(NVFP4Error, match="trace: found the decisions"):
        config_of(plain.trace)
    with pytest.raises(NVFP4Error, match="is no candidate"):
        scheduled(PROBLEM, MmaConfig(16, 64, 16, 32, k_warps=2, stages=7), SM_89)


def test_the_model_against_the_measured_costs():
    """The table's costs are microseconds of 128 k, on an H200."""
    for candidate in CANDIDATES:
        config = candidate.config
        N, K = 2 * 132 * config.block_n, 128 * 4000
        time = SPACE.time(config, N, K, config.block_m, ARCHS["sm_90"]) / 8000
        assert time == pytest.approx(candidate.cost, rel=0.06)


def test_splits_have_bounds():
    split = MmaConfig(32, 64, 32, 32, k_warps=2, stages=4, splits=4)
    assert SPACE.suits(split, 4096, 16384, MRange(17, 64))
    assert not SPACE.suits(split, 4096, 16384, MRange(17))  # sums without a bound
    assert not SPACE.suits(split, 4096, 512, MRange(17, 64))  # stages beyond K
    assert not SPACE.suits(split, 65536, 16384, MRange(17, 4096))
