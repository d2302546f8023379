import pytest
import tvm
from tvm import tirx

from nvfp4_tvm.codegen.launch import launch_target, lower_launch
from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_plain import PlainGemm
from nvfp4_tvm.schedules.gemv import Gemv
from nvfp4_tvm.schedules.kernel import Launch
from nvfp4_tvm.target import resolve_target

SM90 = resolve_target("cuda:sm_90").target


def plain():
    return PlainGemm().apply(MatmulProblem(24, 32), SM90).launches[0]


@pytest.mark.parametrize(
    ("rule", "pipeline"), [(PlainGemm(), "s_tir"), (Gemv(), "tirx")], ids=["s_tir", "tirx"]
)
def test_a_launch_has_its_own_pipeline(rule, pipeline):
    (launch,) = rule.apply(MatmulProblem(24, 32, MRange(1, 8)), SM90).launches
    assert launch.pipeline == pipeline
    lowered = lower_launch(launch, "f", SM90)
    assert lowered.arch == "sm_90" and "f_kernel" in lowered.source
    assert [str(f.attrs["global_symbol"]) for f in lowered.host.functions.values()] == ["__tvm_ffi_f"]


def test_the_device_module_has_the_kernel():
    # That it holds the image is seen in an exported library: test_matmul.py
    module = lower_launch(plain(), "f", SM90).runtime_module(b"image")
    assert module.kind == "cuda" and module.implements_function("f_kernel")


def test_the_callback_of_tvm_is_restored():
    before = tvm.get_global_func("tvm_callback_cuda_compile")
    lower_launch(plain(), "f", SM90)
    assert tvm.get_global_func("tvm_callback_cuda_compile") == before


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize("specific", [False, True])
def test_targets(arch, specific):
    target = resolve_target(f"cuda:{arch}").target
    launch = plain()
    found = launch_target(Launch(launch.function, launch.arguments, launch.pipeline, specific), target)
    assert str(found.attrs["arch"]) == ("sm_90a" if specific and arch == "sm_90" else arch)
    assert str(found.host) == str(target.host)


def test_a_launch_without_a_kernel_is_refused():
    x = tirx.decl_buffer((4,), "float32", "x")
    with pytest.raises(NVFP4Error, match="kernel f: lowered to 0 device modules, expected 1"):
        lower_launch(Launch(tirx.PrimFunc([x], tirx.Evaluate(0)), ("x",), "s_tir"), "f", SM90)
