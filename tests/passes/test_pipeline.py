import numpy as np
import pytest
import tvm
from relax_modules import Weight, activations, assert_rounded_once, build_function, linear, symbolic, tensor
from tvm import relax

from nvfp4_tvm import layout, pipeline
from nvfp4_tvm.codegen import BuildLog, cuda_machine_code
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.target import resolve_target

N, K = 40, 144
LLVM = resolve_target("llvm").target


@pytest.fixture
def weight():
    return Weight.random(np.random.default_rng(0), N, K)


def constant_model(weight, dtype="float32"):
    x = relax.Var("x", relax.TensorType((1, symbolic("s"), K), dtype))
    return build_function([x], lambda b: linear(b, x, weight.constants(), dtype="float32", cast=dtype)).get()


def test_relax_build_with_the_pipeline(weight):
    executable = relax.build(constant_model(weight), LLVM, relax_pipeline=pipeline(LLVM))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    for M in (1, 3, 17, 33, 100):
        x = activations(np.random.default_rng(M), (1, M, K), "float32")
        assert_rounded_once(machine["main"](tensor(x)).numpy(), x, weight)


def test_the_current_target_is_the_default(weight):
    with LLVM:
        lowered = pipeline()(constant_model(weight))
    assert any("nvfp4_matmul" in gvar.name_hint for gvar in lowered.get_global_vars())


def test_weights_as_parameters_go_through_transform_params(weight):
    x = relax.Var("x", relax.TensorType((symbolic("s"), K), "float32"))
    params = weight.params()
    mod = build_function([x, *params], lambda b: linear(b, x, params), num_input=1).get()
    machine = relax.VirtualMachine(relax.build(mod, LLVM, relax_pipeline=pipeline(LLVM)), tvm.cpu())
    packed = machine["transform_params"]([tensor(array) for array in weight.arrays()])
    expected = layout.pack(*weight.arrays())
    for found, field in zip(packed, ("words", "scales", "global_scale"), strict=True):
        np.testing.assert_array_equal(found.numpy(), getattr(expected, field))
    x = activations(np.random.default_rng(1), (5, K), "float32")
    assert_rounded_once(machine["main"](tensor(x), *packed).numpy(), x, weight)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_builds_for_cuda_without_a_gpu(weight, dtype):
    target = resolve_target("cuda:sm_89")
    log = BuildLog()
    mod = constant_model(weight, dtype)
    mod["main"] = mod["main"].with_attr("tir_var_upper_bound", {"s": 16})  # GEMVs alone compile fast
    with cuda_machine_code(target.code_arch):
        executable = relax.build(mod, target.target, relax_pipeline=pipeline(target.target, log))
    short = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    assert f"call  nvfp4_matmul_{N}x{K}_{short}_m1_16 " in executable.as_text()
    assert any(name.startswith(f"nvfp4_matmul_{N}x{K}_{short}_m1_16_gemv") for name in log.usage)


def test_other_targets_are_refused(weight):
    target = tvm.target.Target("vulkan")
    with pytest.raises(TargetError, match="vulkan"):
        pipeline(target)(constant_model(weight))
