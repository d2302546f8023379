"""Reading images with the binary tools."""

import pytest

from nvfp4_tvm.codegen.machine_code import compile_machine_code
from nvfp4_tvm.codegen.sass import count_instructions, dump_ptx, list_images, sass
from nvfp4_tvm.errors import TargetError

_MMA = """extern "C" __global__ void k(unsigned* a, float* c) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]));
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def image() -> bytes:
    return compile_machine_code(_MMA, "sm_89").fatbin


def test_listing(image):
    listing = sass(image, "sm_89")
    assert "Function : k" in listing
    counts = count_instructions(listing)
    assert counts["HMMA.16816.F32.BF16"] == 1
    assert sum(count for name, count in counts.items() if name.startswith("LDG")) >= 2
    assert counts["EXIT"] == 1


def test_predicated_instructions_count():
    line = "        /*0040*/              @!P0 LDG.E R0, desc[UR4][R2.64] ;   /* 0x00 */\n"
    assert count_instructions(line) == {"LDG.E": 1}
    assert count_instructions(line.replace("@!P0", "@UP3")) == {"LDG.E": 1}


def test_ptx(image):
    assert "mma.sync.aligned.m16n8k16" in dump_ptx(image, "sm_89")
    with pytest.raises(TargetError, match="no PTX for sm_80"):
        dump_ptx(image, "sm_80")


def test_other_architecture(image):
    with pytest.raises(TargetError, match=r"no machine code for sm_80.*sm_89"):
        sass(image, "sm_80")


def test_garbage():
    with pytest.raises(TargetError, match="cuobjdump cannot read"):
        list_images(b"not an image")


def test_without_the_tools(image, monkeypatch):
    monkeypatch.setattr("nvfp4_tvm.codegen.toolkit.nvidia_roots", lambda: [])
    monkeypatch.setattr("nvfp4_tvm.codegen.toolkit.toolkit_roots", lambda: [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TargetError, match="pip install nvidia-cuda-cuobjdump"):
        sass(image, "sm_89")
