import tvm
from tvm import te

from nvfp4_tvm.passes.external import ATTRIBUTE, attach


def compiled(name):
    x = te.placeholder((4,), "float32")
    function = te.create_prim_func([x, te.compute((4,), lambda i: x[i])])
    return tvm.compile(tvm.IRModule({name: function.with_attr("global_symbol", name)}), "llvm").mod


def names(mod):
    return [[name for name in "abc" if module.implements_function(name)] for module in mod.attrs[ATTRIBUTE]]


def test_modules_are_appended_and_none_twice():
    mod = attach(tvm.IRModule(), [("a", compiled("a"))])
    mod = attach(
        mod, [("b", compiled("b")), ("a", compiled("a")), ("b", compiled("b")), ("c", compiled("c"))]
    )
    assert names(mod) == [["a"], ["b"], ["c"]]


def test_nothing_to_attach_leaves_the_module():
    mod = tvm.IRModule()
    assert attach(mod, []).same_as(mod)
