"""Ten thousand damaged and malicious inputs: refused in one line, or accepted with the right numbers.

None may crash the process, hang, allocate without bound, or reach outside of its folder. The seeds are fixed, so
that a failure can be repeated; `fuzz_targets` runs the same targets under atheris for as long as one likes.
"""

import json
import random
import re
import resource
import time

import fuzz_targets
import pytest
import raw_checkpoints as rc
from tuning_records import record

from nvfp4_tvm.checkpoint import patterns
from nvfp4_tvm.runtime.folder import Manifest
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.records import header
from nvfp4_tvm.tuning import journal as tuning
from nvfp4_tvm.tuning.trial import Candidate, Trial, problem_of

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "eos_token_id": [2], "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
MANIFEST = Manifest(
    "llvm", "cpu", "float32", "llama", 3, 512, 256, 64, ("a", "b"), None, (2,), param_digests={"a": "00"}
)
HOSTILE = [
    None, True, -1, 0, 1, 3, 2**31, 2**62, 2**63, 10**400, -(2**70), 0.5, float("inf"), float("nan"), 1e308, "",
    "x", "../../etc/passwd", "/etc/passwd", "a\x00b", "re:(a+)+$", "re:" + "a?" * 60 + "a" * 60, "é\n", "NVFP4",
    "re:.*.*.*.*.*x", "x" * 100_000, [], {}, [[]], [{}], {"": None}, [1] * 1000, "F8_E4M3", "BF16", "Linear",
    [0, 8], [2**40, 2],
]  # fmt: skip
#: Parts of regular expressions; put together at random they backtrack as badly as any.
PIECES = [
    "a", "b", ".", r"\d", "[ab]", "[^x]", "(", ")", "(?:", "(?=", "(?!", "|", "*", "+", "?", "{1,9}", "{3}",
    "{,5}", "*?", "+?", "^", "$", r"\b", "(a+)+", "(a|a)*", "(a|b)?", r"(\w+)\1", "(?P<n>a)", "(?P=n)", "(?i)",
    "(?x)", "a{0,99}", "\\",
]  # fmt: skip


def changed(value, rng):
    """Return a JSON value with one node replaced, removed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key, result = rng.choice(sorted(value)), dict(value)
        kind = rng.random()
        if kind < 0.1:
            del result[key]
        elif kind < 0.2:
            result[rng.choice(["__metadata__", "", key * 2, "../" + key])] = result.pop(key)
        else:
            result[key] = changed(value[key], rng)
        return result
    if isinstance(value, list) and value and rng.random() < 0.6:
        at, result = rng.randrange(len(value)), list(value)
        result[at] = changed(value[at], rng)
        return result if rng.random() < 0.8 else result * 2
    return rng.choice(HOSTILE)


def damaged(data, rng):
    """Return bytes that are flipped, cut, doubled or filled in."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randint(1, 50)]
        elif kind == 3:
            data[at:at] = rng.choice(
                [b'"', b"{", b"[" * 3000, b"\x00", b"9" * 40, b"\\u0000", b"\xff", b'{"a":' * 999]
            )
        else:
            data[at : at + rng.randint(1, 9)] = rng.randbytes(rng.randint(0, 9))
    return bytes(data)


def json_case(value):
    def case(rng):
        for _ in range(rng.randint(1, 3)):
            value_now = changed(case.value if rng.random() < 0.7 else value, rng)
        text = json.dumps(value_now).encode()
        return text if rng.random() < 0.8 else damaged(text, rng)

    case.value = value
    return case


def header_case(rng):
    header, body = rc.header_of(rc.tensors("modelopt"))
    if rng.random() < 0.8:
        for _ in range(rng.randint(1, 3)):
            header = changed(header, rng)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    length = len(text) if rng.random() < 0.9 else rng.choice([0, 1, len(text) + 8, 2**31, 2**63, 2**64 - 1])
    data = (
        length.to_bytes(8, "little")
        + text
        + (body if rng.random() < 0.9 else body[: rng.randrange(len(body))])
    )
    return data if rng.random() < 0.7 else damaged(data, rng)


def pattern_case(rng):
    if rng.random() < 0.2:
        return damaged(rb".*layers[.]\d+[.]mlp[.](gate|up)_proj$", rng)
    return "".join(rng.choices(PIECES, k=rng.randint(1, 12))).encode()


def journal_case(rng):
    line = {"name": "a", "digest": "0"}
    lines = [{"format": 1, "key": "key"}, *(changed(line, rng) for _ in range(rng.randint(0, 3)))]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return text if rng.random() < 0.5 else damaged(text, rng)


def lines_case(first, others):
    """Files of JSON lines: some lines changed, repeated or left out."""

    def case(rng):
        lines = [first if rng.random() < 0.9 else changed(first, rng)]
        for _ in range(rng.randint(0, 4)):
            line = rng.choice(others)
            lines.append(line if rng.random() < 0.5 else changed(line, rng))
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return text if rng.random() < 0.7 else damaged(text, rng)

    return case


RECORDS = [record(), record(M=MRange(9, 16)), record(M=MRange(17), family="gemm_mma")]
TRIAL = {
    **Trial(problem_of(4096, 4096, "bfloat16", "plain"), Candidate("gemv", RECORDS[0].config), 8, 0).to_json(),
    "time_us": 9.5, "floor_us": 3.0, "error": None,
}  # fmt: skip


def library_folder_case(rng):
    files = [content for _, content in sorted(fuzz_targets.compiled_folder())]
    which = rng.randrange(len(files))
    data = files[which]
    if data.startswith(b"{") and rng.random() < 0.5:
        data = json.dumps(changed(json.loads(data), rng)).encode()
    return bytes([which]) + (data if rng.random() < 0.1 else damaged(data, rng))


#: Target: number of cases, and what makes one.
CASES = {
    "header": (2000, header_case),
    "modelopt": (1250, json_case(rc.config("modelopt"))),
    "compressed_tensors": (1250, json_case(rc.config("compressed-tensors"))),
    "pattern": (1000, pattern_case),
    "model_config": (1000, json_case(LLAMA)),
    "manifest": (1000, json_case(json.loads(json.dumps(vars(MANIFEST))))),
    "tuning_database": (750, lines_case(header(), [each.to_json() for each in RECORDS])),
    "tuning_journal": (250, lines_case({"title": tuning._TITLE, **fuzz_targets.TUNING_RUN}, [TRIAL])),
    "library_folder": (500, library_folder_case),
    "journal": (500, journal_case),
    "cache_entry": (500, json_case({"files": {"lib.so": "00"}, "about": {}, "description": "", "bytes": 7})),
}
assert sum(count for count, _ in CASES.values()) == 10_000


@pytest.mark.parametrize("name", CASES)
def test_refused_or_right(name):
    count, case = CASES[name]
    rng, target = random.Random(name), fuzz_targets.TARGETS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = 0
    for number in range(count):
        data = case(rng)
        try:
            accepted += target(data)
        except Exception as error:
            raise AssertionError(f"{name}, case {number}: {data[:2000]!r}") from error
    # Refusing everything would pass as well, and would show nothing.
    assert name == "cache_entry" or 0 < accepted < count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*b", "(.*)*x", ".*.*.*.*.*x", r"(\w+)\1+", "(?=(a+))+", "a?" * 60 + "a" * 60, "[ab]*" * 5,
     "(?:a*)*b", "(?x) (a+) +", "(a{1,99}){1,99}", "((a)+)+b", "a{1,300}" * 4 + "b", ".{0,255}" * 9 + "!"],
)  # fmt: skip
def test_catastrophic_patterns_end(pattern):
    start = time.perf_counter()
    fuzz_targets.pattern(pattern.encode())
    assert time.perf_counter() - start < 2 * patterns._MAX_SECONDS


@pytest.mark.parametrize("pattern", [">(?\n+\n\n\n\n>(?", "(?P<a\nb>x)", "[z-\n]"])
def test_line_breaks_of_patterns_stay_out_of_messages(pattern):
    """Found by atheris: re quotes a pattern's characters as they are."""
    fuzz_targets.pattern(pattern.encode())


def test_nothing_is_unpickled():
    """No module of the package knows pickle, and none of NumPy's or torch's loaders that do is called."""
    unsafe = re.compile(
        r"\b(pickle|marshal|shelve|dill|joblib)\b|\bnp\.load\(|\btorch\.load\(|\beval\(|\bexec\("
    )
    root = fuzz_targets.Path(fuzz_targets.__file__).parents[2]
    sources = [
        path for folder in ("nvfp4_tvm", "passes", "schedules") for path in (root / folder).rglob("*.py")
    ]
    assert len(sources) > 100
    found = [f"{path}: {match[0]}" for path in sources for match in unsafe.finditer(path.read_text())]
    assert not [line for line in found if "model.eval" not in line], found
