import os
from pathlib import Path

import pytest
import tvm
import tvm_names
from tvm import relax, tirx
from tvm.relax.frontend import nn

from nvfp4_tvm.mlc import compat

PLUG_IN = sorted(Path(compat.__file__).parent.glob("*.py"))
PINNED = tvm_names.Tree(Path(tvm.__file__).parents[1])


class OldVar:
    """A variable of TVM before 0.27."""

    name_hint = "seq_len"


def test_names_of_variables_of_either_tvm():
    assert compat.var_name(tirx.Var("batch_size", "int64")) == "batch_size"
    assert compat.var_name(OldVar()) == "seq_len"


@pytest.mark.parametrize(
    ("extent", "expected"), [(7, 7), (tirx.IntImm("int64", 9), 9), (tirx.Var("n", "int64"), None)]
)
def test_constants(extent, expected):
    found = compat.constant(extent)
    assert found == expected and type(found) in (int, type(None))


def test_an_expression_becomes_a_tensor_of_the_frontend():
    class Twice(nn.Module):
        def forward(self, x: nn.Tensor):
            return compat.tensor(relax.op.add(x._expr, x._expr), "twice")

    mod, _ = Twice().export_tvm(spec={"forward": {"x": nn.spec.Tensor([2, "n"], "float32")}})
    text = mod["forward"].script()
    assert "R.add(x, x)" in text and "twice" in text


def test_the_pinned_tvm_has_all_names_that_the_plug_in_uses():
    assert len({name for file in PLUG_IN for name in tvm_names.used(file, PINNED)}) > 20
    assert tvm_names.missing(PLUG_IN, PINNED) == []


@pytest.mark.skipif("TVM_SOURCE" not in os.environ, reason="TVM_SOURCE does not name a checkout of TVM")
def test_the_tvm_of_mlc_llm_has_all_names_that_the_plug_in_uses():
    assert tvm_names.missing(PLUG_IN, tvm_names.Tree(Path(os.environ["TVM_SOURCE"]) / "python")) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from tvm import relax", []),
        ("from tvm.relax.frontend import nn; nn.Linear; nn.op.matmul", []),
        ("import tvm; tvm.relax.Tuple; tvm.ir.Op", []),
        ("from tvm.relax.expr import NoSuch", ["x.py: tvm.relax.expr.NoSuch"]),
        ("import tvm; tvm.relax.NoSuch.more", ["x.py: tvm.relax.NoSuch"]),
        ("from tvm.gone import anything", ["x.py: tvm.gone.anything"]),
    ],
)
def test_names_that_a_tvm_does_not_have_are_found(line, expected, tmp_path):
    (tmp_path / "x.py").write_text(line)
    assert tvm_names.missing([tmp_path / "x.py"], PINNED) == expected
