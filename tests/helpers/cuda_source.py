"""From the CUDA source that TVM generates to C++: assembly becomes calls, shared memory that of a block."""

import re

#: Instructions, by pattern, and the functions of ``cuda/`` that do what they do. Suffixes that only say how to
#: cache, or that an order is kept which everything here has, are left out; so are whole instructions that do that.
_INSTRUCTIONS = [
    (r"ld\.acquire\.gpu\.global\.\w+", "ld_acquire"),
    (r"ld\.(global|shared)[\w.:]*", "ld"),
    (r"st\.(global|shared|release)[\w.:]*", "st"),
    (r"fence\.proxy\.async[\w.:]*", "fence_async"),
    (r"(fence|griddepcontrol|prefetch|setmaxnreg|wgmma\.fence)\.[\w.:]*", ""),
    (r"exit", "thread_exit"),
    (r"lop3\.b32", "lop3"),
    (r"fma\.rn\.bf16x2", "fma<nv_bfloat16>"),
    (r"fma\.rn\.f16x2", "fma<half>"),
    (r"cvt\.rn\.bf16x2\.f32", "pack<nv_bfloat16>"),
    (r"cvt\.rn\.f16x2\.f32", "pack<half>"),
    (r"bar\.sync", "bar_sync"),
    (r"barrier\.cluster\.arrive[\w.]*", "cluster_arrive"),
    (r"barrier\.cluster\.wait[\w.]*", "cluster_wait"),
    (r"mapa\.shared::cluster\.u32", "mapa"),
    (r"cluster_ctarank", "cluster_rank"),
    (r"mbarrier\.init\.shared\.b64", "mbarrier_init"),
    (r"mbarrier\.arrive\.expect_tx\.shared\.b64", "mbarrier_expect"),
    (r"mbarrier\.arrive\.shared\.b64", "mbarrier_arrive"),
    (r"mbarrier\.try_wait\.parity[\w.:]*", "mbarrier_wait"),
    (r"cp\.async\.c[ag]\.shared\.global[\w.:]*", "cp_async"),
    (r"cp\.async\.commit_group", "cp_async_commit"),
    (r"cp\.async\.wait_group", "cp_async_wait"),
    (r"cp\.async\.bulk\.shared::cluster\.global\.mbarrier::complete_tx::bytes", "bulk_load"),
    (r"cp\.async\.bulk\.tensor\.2d\.shared::cluster\.global\.mbarrier::complete_tx::bytes", "tensor_load"),
    (r"cp\.async\.bulk\.tensor\.2d\.global\.shared::cta\.bulk_group", "tensor_store"),
    (r"cp\.async\.bulk\.commit_group", "bulk_commit"),
    (r"cp\.async\.bulk\.wait_group(\.read)?", "bulk_wait"),
    (r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.bf16\.bf16\.f32", "mma<nv_bfloat16>"),
    (r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16\.f16\.f32", "mma<half>"),
    (r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k16\.f32\.bf16\.bf16", "wgmma<nv_bfloat16>"),
    (r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k16\.f32\.f16\.f16", "wgmma<half>"),
    (r"wgmma\.commit_group\.sync\.aligned", "wgmma_commit"),
    (r"wgmma\.wait_group\.sync\.aligned", "wgmma_wait"),
    (r"stmatrix\.sync\.aligned\.m8n8\.x[124]\.shared\.b16", "stmatrix<false>"),
    (r"stmatrix\.sync\.aligned\.m8n8\.x[124]\.trans\.shared\.b16", "stmatrix<true>"),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x[124]\.shared\.b16", "ldmatrix<false>"),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x[124]\.trans\.shared\.b16", "ldmatrix<true>"),
    (r"movmatrix\.sync\.aligned\.m8n8\.trans\.b16", "movmatrix"),
]
#: What follows on TVM's headers.
_FIRST_OWN = re.compile(
    r"\n\s*(#ifndef NVFP4|template <class T>|extern \"C\""
    r"|(static )?(__forceinline__ __device__|__device__ __forceinline__) )"
)
_ASM = re.compile(r"\basm\s*(volatile)?\s*\(")
_SHARED = re.compile(r"__shared__ alignas\((\d+)\) (\w+) (\w+)\[(\d+)\];")
_DYNAMIC = re.compile(r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];")
_SIZES = {"float": 4, "uint": 4, "int": 4, "half": 2, "nv_bfloat16": 2, "ushort": 2, "uchar": 1, "int64_t": 8}
#: Of every block's shared memory; the swizzle of 128 bytes repeats after so many.
_ALIGNMENT = 1024
_TOKEN = re.compile(r"%\d+|[{}]|\+\s*\d+|-?\b0x[0-9a-fA-F]+\b|-?\b\d+\b|\bps0\b")


def as_cpp(source, kernel):
    """Return C++ that defines a kernel, and its parameters as C has them."""
    source = source[_FIRST_OWN.search(source).start() :]
    source = _without_assembly(source)
    (signature,) = set(re.findall(rf"{kernel}\((.*?)\)", source))
    parameters = [parameter.replace(" __restrict__", "") for parameter in signature.split(", ")]
    parameters = [re.sub(r"const __grid_constant__ CUtensorMap ", "CUtensorMap &", p) for p in parameters]
    source = source.replace("const __grid_constant__ CUtensorMap ", "CUtensorMap& ")
    for name in re.findall(r"\* __restrict__ (\w+)", signature):
        # Where an address is taken, the instruction that gets it looks whether it may
        source = source.replace(f"&({name}[", f"&({name}.raw[")
    source = re.sub(r"(\w+)\* __restrict__ ", r"Tensor<\1> ", source)
    return '#include "matrices.h"\n' + _with_shared(source), parameters


def _with_shared(source):
    used = 0

    def static(match):
        nonlocal used
        alignment, dtype, name, count = int(match[1]), match[2], match[3], int(match[4])
        offset = -(-used // alignment) * alignment
        used = offset + _SIZES[dtype] * count
        return f"auto& {name} = *({dtype}(*)[{count}])(current->block->shared + {offset});"

    source = _SHARED.sub(static, source)
    first = -(-used // _ALIGNMENT) * _ALIGNMENT
    return _DYNAMIC.sub(rf"\1* \2 = (\1*)(current->block->shared + {first});", source)


def _without_assembly(source):
    parts, at = [], 0
    while match := _ASM.search(source, at):
        end = _closing(source, match.end())
        parts += [source[at : match.start()], _call(source[match.end() : end])]
        at = end + 1
    return "".join([*parts, source[at:]])


def _closing(text, at):
    """Return where the parenthesis that is open at ``at`` closes."""
    depth, quoted = 1, False
    while True:
        character = text[at]
        if character == "\\":
            at += 1
        elif character == '"':
            quoted = not quoted
        elif not quoted:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth == 0:
                return at
        at += 1


def _call(statement):
    """Return the call that stands for the inside of ``asm(...)``."""
    template, *sections = _sections(statement)
    text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', template)).replace("\\n", "\n")
    text = re.sub(r"mov\.u32 %0, %%(\w+)", r"\1 %0", text)
    outputs, inputs = ([_expressions(section) for section in sections] + [[], []])[:2]
    expressions = outputs + inputs
    predicate = re.search(r"setp\.ne\.b32 ps0, %(\d+), 0;", text)
    # The one statement of a block or a loop that does something
    wanted = re.search(r"(mbarrier\.try_wait|wgmma\.mma_async)[^;]*", text) or re.search(r"[^;]*", text)
    mnemonic, _, operands = wanted[0].strip().replace(" P1,", " ", 1).partition(" ")
    if not mnemonic:
        return "(void)0"
    function = next(
        (function for pattern, function in _INSTRUCTIONS if re.fullmatch(pattern, mnemonic)), None
    )
    if function is None:
        raise LookupError(f"instruction {mnemonic}: expected one of cuda_source.py; define it in cuda/")
    if not function:
        return "(void)0"
    if function == "mbarrier_wait":
        operands = operands.rpartition(",")[0]  # how long it may sleep
    arguments = _arguments(operands, expressions, len(outputs), predicate and expressions[int(predicate[1])])
    if function in ("ld", "ld_acquire", "st") and "{" not in operands:
        own = 0 if function != "st" else 1
        arguments[own] = f"{{&({arguments[own]})}}" if function != "st" else f"{{{arguments[own]}}}"
    return f"ptx::{function}({', '.join(arguments)})"


def _sections(statement):
    """Split at the colons between template, outputs, inputs and clobbers."""
    parts, depth, quoted, begin = [], 0, False, 0
    for at, character in enumerate(statement):
        if character == '"':
            quoted = not quoted
        elif not quoted:
            depth += {"(": 1, ")": -1}.get(character, 0)
            if character == ":" and depth == 0:
                parts.append(statement[begin:at])
                begin = at + 1
    return [*parts, statement[begin:]]


def _expressions(section):
    """Return the expressions of ``"constraint"(expression), ...``."""
    found, at = [], 0
    while match := re.compile(r'"[^"]*"\s*\(').search(section, at):
        at = _closing(section, match.end())
        found.append(section[match.end() : at])
    return found


def _arguments(operands, expressions, outputs, predicate):
    """Return the arguments of a call, operands in order; {...} is a list, of pointers if first and written."""
    arguments, group = [], None
    for token in _TOKEN.findall(operands):
        target = arguments if group is None else group
        if token == "{":
            group = []
        elif token == "}":
            arguments.append("{" + ", ".join(group) + "}")
            group = None
        elif token.startswith("+"):
            target[-1] = f"ptx::plus({target[-1]}, {token[1:]})"
        elif token == "ps0":
            target.append(predicate)
        elif token.startswith("%"):
            index = int(token[1:])
            pointer = group is not None and not arguments and index < outputs
            target.append(f"&({expressions[index]})" if pointer else expressions[index])
        else:
            target.append(token)
    return arguments
