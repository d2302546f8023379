import pytest

from nvfp4_tvm.codegen.single import build_launch
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.target import resolve_target


def test_a_target_without_the_launch_is_refused():
    with pytest.raises(TargetError, match="target cuda: has no kernel nvfp4_nothing"):
        build_launch("nvfp4_nothing", lambda target: None, resolve_target("cuda:sm_89").target, None)
