import subprocess
import sys

import pytest

from nvfp4_tvm import errors

CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
]


def test_users_can_catch_all_of_them_at_once():
    assert len(CLASSES) > 4
    assert all(issubclass(cls, errors.NVFP4Error) and issubclass(cls, ValueError) for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_they_survive_the_way_through_tvm(cls):
    import tvm

    import nvfp4_tvm.op  # noqa: F401  registers them

    @tvm.transform.module_pass(opt_level=0)
    def fail(mod, ctx):
        raise cls("the message")

    with pytest.raises(cls, match="the message") as caught:
        fail(tvm.IRModule())
    assert type(caught.value) is cls


def test_importing_them_does_not_load_tvm():
    code = "import sys, nvfp4_tvm.errors; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
