"""Compare models that MLC-LLM compiled with transformers.

    MLC_LLM_SOURCE=mlc-llm python benchmarks/verify_mlc.py --json out.json [--models llama,qwen3] [--folder WORK]
    MLC_LLM_SOURCE=mlc-llm python benchmarks/verify_mlc.py --target sm_90 --prepare --folder WORK  # no GPU needed
    python benchmarks/verify_mlc.py --run WORK --json out.json                                    # on the GPU

For each model: tiny checkpoints written by ModelOpt and compressed-tensors (where there are experts, which this
leaves unquantized: by `nvfp4-tvm quantize` in its format) and a bfloat16 one, MLC-LLM's gen_config,
convert_weight and compile on each, then a prompt and 8 greedy steps without near ties. The reference is
transformers in float32 on exactly dequantized weights; for the bfloat16 checkpoint, on what `nvfp4-tvm quantize`
makes of it. A last row for each model without experts is MLC-LLM's own, unquantized in float32, on the bfloat16
checkpoint.
Beside a row's cosine is that of transformers itself in the quantization's dtype. `gemma3_two_bases` is a Gemma 3
with the RoPE of the published ones, which MLC-LLM does not compute (docs/mlc.md).
Checkpoints that ask for the same model share a library, as in MLC-LLM's own cache. `MLC_LLM_SHIM` names a script
that runs MLC-LLM's Python on this environment's TVM (tests/helpers/mlc_llm_model.py). A minute or two a library;
rows of other models that the file has already stay there.
``--prepare`` leaves what ``--run`` needs in the folder: that needs neither MLC-LLM nor checkpoints, and takes
libraries that lie there as ``lib.so.xz``, too.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import make_checkpoints  # noqa: E402
import mlc_llm_model  # noqa: E402
import reference  # noqa: E402

from benchmarks.record import write  # noqa: E402
from nvfp4_tvm.quantize import quantize_checkpoint  # noqa: E402

#: What is asked of `make_checkpoints` beside the name as an architecture.
MODELS: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"tie": True},
    "gemma3_two_bases": {
        "arch": "gemma3_text",
        "tie": True,
        "config": {"rope_parameters": make_checkpoints.gemma3_rope(1_000_000)},
    },
    "phi3": {},
    "mixtral": {},
    "qwen3_moe": {},
}
#: Models whose experts transformers 5 stacks; compressed-tensors leaves the stacks unquantized.
EXPERTS = ("mixtral", "qwen3_moe")
FORMATS = ("modelopt", "compressed-tensors", "bf16")
#: Dtype of activations and unquantized weights.
DTYPES = {"nvfp4_skel": "bfloat16", "nvfp4_skel_f16": "float16"}
QUANTIZATIONS = tuple(DTYPES)
#: MLC-LLM's own models in float32, with none of this project's code: what its models deviate by themselves.
UNQUANTIZED = "q0f32"
#: What `mlc_llm compile` is given as a device, and for a GPU's host the triple alone: it runs on other processors.
TARGETS = {
    "cpu": ("cpu:0", ()),
    "sm_89": ("nvidia/geforce-rtx-4090", ("--host", "x86_64-linux-gnu")),
    "sm_90": ("nvidia/nvidia-h100", ("--host", "x86_64-linux-gnu")),
}
KEYS = ("target", "model", "format", "quantization")
PROMPT, STEPS = 37, 8

Row = dict[str, object]
INDEX = "cases.json"


@dataclass(frozen=True)
class Case:
    """What a row needs: a library, the folder of its parameters, and what transformers computes."""

    target: str
    model: str
    format: str
    quantization: str
    library: Path
    out: Path
    prompt: list[int]
    tokens: list[int]
    expected: np.ndarray
    cosine_transformers_min: float | None = None

    @property
    def key(self) -> Row:
        """Columns by which a row is found."""
        return {name: getattr(self, name) for name in KEYS}


def make_checkpoint(
    folder: Path, model: str, form: str, config: dict[str, int] | None = None
) -> tuple[Path, Path]:
    """Return a checkpoint, and the NVFP4 checkpoint that says what it computes."""
    path = folder / f"{model}-{form}"
    settings = {"arch": model, "config": config, **MODELS[model]}
    if form == "modelopt":
        make_checkpoints.make_modelopt(path, **settings)
    elif form == "compressed-tensors" and model in EXPERTS:
        quantize_checkpoint(
            make_checkpoints.make_plain(folder / f"{model}-plain", **settings), path, format=form
        )
    elif form == "compressed-tensors":
        make_checkpoints.make_compressed_tensors(path, **settings)
    else:
        make_checkpoints.make_plain(path, **settings)
    old_spelling(path / "config.json")
    if form != "bf16":
        return path, path
    quantized = folder / f"{model}-quantized"
    quantize_checkpoint(path, quantized)
    return path, quantized


def old_spelling(file: Path) -> None:
    """Spell RoPE's base, and Qwen3's number of experts, as before transformers 5, which is what MLC-LLM reads."""
    config = json.loads(file.read_text())
    rope = config["rope_parameters"]
    config["rope_theta"] = rope.get("full_attention", rope)["rope_theta"]
    if config.get("model_type") == "qwen3_moe":
        config["num_experts"] = config.get("num_local_experts", config.get("num_experts"))
    file.write_text(json.dumps(config, indent=2))


def build(
    checkpoint: Path,
    out: Path,
    quantization: str,
    libraries: dict[str, Path],
    serial: bool = False,
    target: str = "cpu",
) -> Path:
    """Run MLC-LLM's three commands; return the library, of an earlier checkpoint if it is the same.

    ``serial`` is for models that MLC-LLM does not compile for the CPU otherwise (tests/helpers/mlc_llm_serial.py).
    """
    mlc_llm_model.configure(checkpoint, out, quantization)
    mlc_llm_model.convert(checkpoint, out, quantization)
    config = json.loads((out / "mlc-chat-config.json").read_text())
    record = config["model_config"].get("nvfp4", {})
    key = json.dumps([{**config["model_config"], "nvfp4": None}, quantization, record.get("unquantized")])
    if not record:  # without a record the default holds, which is what the libraries leave unquantized
        key = next((known for known in libraries if known.startswith(key.removesuffix(", null]"))), key)
    if key not in libraries:
        device, options = TARGETS[target]
        libraries[key] = mlc_llm_model.compile(
            out, *options, device=device, serial=serial and target == "cpu"
        )
    return libraries[key]


def cases(folder: Path, model: str, quantizations: tuple[str, ...], target: str = "cpu") -> Iterator[Case]:
    """Yield a case for each format and quantization of a model, then MLC-LLM's own without quantization."""
    libraries: dict[str, Path] = {}
    for form in FORMATS:
        checkpoint, meaning = make_checkpoint(folder, model, form)
        torch_model = reference.reference_model(meaning)
        steps = reference.clear_steps(torch_model, PROMPT, STEPS + 1)
        for quantization in quantizations:
            out = folder / f"{model}-{form}-{quantization}"
            library = build(checkpoint, out, quantization, libraries, model in EXPERTS, target)
            rounded = reference.forced_steps(torch_model, *steps[:2], DTYPES[quantization])
            own = float(reference.cosine(rounded, steps[2]).min())
            yield Case(target, model, form, quantization, library, out, *steps, own)
        if form == "bf16" and model not in EXPERTS:
            out = folder / f"{model}-{form}-{UNQUANTIZED}"
            library = build(checkpoint, out, UNQUANTIZED, libraries, True, target)
            steps = reference.clear_steps(reference.reference_model(checkpoint), PROMPT, STEPS + 1)
            yield Case(target, model, form, UNQUANTIZED, library, out, *steps)


def verify(folder: Path, model: str, quantizations: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of a model on the CPU."""
    for case in cases(folder, model, quantizations):
        yield compare(case)


def unpacked(library: Path) -> Path:
    """Return a library that may lie there compressed."""
    if not library.exists():
        library.write_bytes(lzma.decompress(library.with_name(f"{library.name}.xz").read_bytes()))
    return library


def compare(case: Case, device: str = "cpu") -> Row:
    """Return how near a library's logits come to those of a reference, and how often the token is the same."""
    parameters = mlc_llm_model.read_parameters(case.out)
    prompt, tokens, expected = case.prompt, case.tokens, case.expected
    library = unpacked(case.library)
    compiled = mlc_llm_model.CompiledModel(library, parameters, device=device)
    single, batch = (compiled.steps(prompt, tokens[:-1], batch=batch) for batch in (False, True))
    cosines = np.minimum(reference.cosine(single, expected), reference.cosine(batch, expected))
    row: Row = {
        **case.key,
        "prompt": PROMPT,
        "steps": STEPS,
        "cosine_prefill": float(cosines[0]),
        "cosine_decode_min": float(cosines[1:].min()),
        "greedy_equal": min(int((logits.argmax(-1) == tokens).sum()) for logits in (single, batch)),
    }
    if case.cosine_transformers_min is not None:
        row["cosine_transformers_min"] = case.cosine_transformers_min
    return row


def prepare(folder: Path, models: list[str], quantizations: tuple[str, ...], target: str) -> None:
    """Make the cases of some models in a folder, beside those of others there, for `prepared` to read."""
    known = json.loads((folder / INDEX).read_text())["cases"] if (folder / INDEX).exists() else []
    index = [case for case in known if case["model"] not in models]
    for model in models:
        for case in cases(folder, model, quantizations, target):
            paths = {name: str(getattr(case, name).relative_to(folder)) for name in ("library", "out")}
            steps = {"prompt": case.prompt, "tokens": case.tokens, "expected": case.expected.tolist()}
            own = {"cosine_transformers_min": case.cosine_transformers_min}
            index.append({**case.key, **paths, **steps, **own})
            print({**case.key, **paths}, flush=True)
            (folder / INDEX).write_text(json.dumps({"mlc_llm": mlc_llm_model.revision(), "cases": index}))


def prepared(folder: Path) -> tuple[list[Case], str]:
    """Return what `prepare` left in a folder, and the commit of MLC-LLM."""
    content = json.loads((folder / INDEX).read_text())
    found = [
        Case(
            **case
            | {name: folder / case[name] for name in ("library", "out")}
            | {"expected": np.array(case["expected"], np.float32)}
        )
        for case in content["cases"]
    ]
    return found, content["mlc_llm"]


def main() -> None:
    """Verify and print, and write what was seen if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--quantizations", default=",".join(QUANTIZATIONS))
    parser.add_argument("--target", choices=TARGETS, default="cpu")
    parser.add_argument("--folder", help="where to work and to leave everything; must be empty")
    parser.add_argument(
        "--prepare", action="store_true", help="compute nothing, but leave in --folder what --run takes"
    )
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="that --prepare made")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    models, quantizations = arguments.models.split(","), tuple(arguments.quantizations.split(","))
    if arguments.run is None and (why := mlc_llm_model.missing()):
        sys.exit(why)
    if arguments.prepare:
        if not arguments.folder:
            sys.exit("--prepare: --folder says where")
        return prepare(Path(arguments.folder), models, quantizations, arguments.target)
    if arguments.run is None and arguments.target != "cpu":
        sys.exit(f"--target {arguments.target}: here with --prepare, on the GPU with --run")
    file = Path(arguments.json) if arguments.json else None
    rows = json.loads(file.read_text())["rows"] if file and file.is_file() else []

    def keep(row: Row, commit: str) -> None:
        nonlocal rows
        print(row, flush=True)
        rows = [old for old in rows if any(old.get(key, "cpu") != row[key] for key in KEYS)] + [row]
        if file:
            write(file, rows, mlc_llm=commit)

    if arguments.run is not None:
        found, commit = prepared(arguments.run)
        for case in found:
            if case.model in models and case.quantization in (*quantizations, UNQUANTIZED):
                device = "cpu" if case.target == "cpu" else "cuda"
                try:
                    keep(compare(case, device), commit)
                except Exception as error:  # the other cases are worth having
                    keep({**case.key, "error": f"{type(error).__name__}: {error}"[:2000]}, commit)
        return None
    with tempfile.TemporaryDirectory() as temporary:
        for model in models:
            for row in verify(Path(arguments.folder or temporary), model, quantizations):
                keep(row, mlc_llm_model.revision())
    return None


if __name__ == "__main__":
    main()
