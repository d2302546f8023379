"""Compare what MLC-LLM's server says with transformers: its engine on libraries with NVFP4 weights.

    MLC_LLM_SOURCE=mlc-llm python benchmarks/verify_mlc_engine.py --target cpu --prepare --folder WORK
    MLC_LLM_SOURCE=mlc-llm MLC_LIBRARY_PATH=build python benchmarks/verify_mlc_engine.py --run WORK --json out.json

``--prepare`` needs no GPU: tiny checkpoints that ModelOpt and compressed-tensors write, with a tokenizer, through
MLC-LLM's gen_config, convert_weight and compile; greedy answers of transformers, in float32 on exactly dequantized
weights, to texts none of which leaves a choice to rounding. ``--run`` starts ``mlc_llm serve`` on each, asks one
text after the other, then all at once. A row says how many answers are those of transformers, letter by letter.

Where a case has several shards, the server has as many GPUs and TVM's runtime needs NCCL, which PyPI's TVM does
not have. The variables are those of tests/helpers/mlc_llm_model.py and mlc_llm_engine.py.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import ascii_tokenizer  # noqa: E402
import mlc_llm_engine  # noqa: E402
import mlc_llm_model  # noqa: E402
import reference  # noqa: E402

from benchmarks import verify_mlc  # noqa: E402
from benchmarks.record import write  # noqa: E402

STEPS = 12
TEXTS = 4
INDEX = "cases.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A checkpoint, and how MLC-LLM is to serve it."""

    model: str
    format: str
    quantization: str
    shards: int = 1
    #: Of the model's configuration.
    settings: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """A folder's name."""
        return f"{self.model}-{self.format}-{self.quantization}-{self.shards}"


#: Two shards of o_proj and down_proj of K = 128 each.
_WIDE = (("hidden_size", 256), ("head_dim", 64))
CASES = (
    Case("llama", "modelopt", "nvfp4_skel"),
    Case("qwen3", "compressed-tensors", "nvfp4_skel_f16"),
    Case("gemma3_text", "modelopt", "nvfp4_skel_f16"),
    Case("mixtral", "modelopt", "nvfp4_skel_f16"),
    Case("llama", "compressed-tensors", "nvfp4_skel", 2, _WIDE),
    Case("llama", "modelopt", "nvfp4_skel_f16", 2, _WIDE),
)


def clear_texts(model: Any, tokenizer: Any, count: int, first: tuple[int, ...] = ()) -> dict[str, str]:
    """Return texts, none of which leaves a choice to rounding, and what greedy decoding says to each.

    Parameters
    ----------
    first : tuple of int
        Tokens that MLC-LLM puts in front of the text's own.
    """
    found: dict[str, str] = {}
    index = 0
    while len(found) < count:

        def draw(generator: np.random.Generator, length: int, index: int = index) -> list[int]:
            tokens = np.roll(generator.integers(3, tokenizer.get_vocab_size(), length), index).tolist()
            return [*first, *tokenizer.encode(tokenizer.decode(tokens).strip()).ids]

        prompt, tokens, _ = reference.clear_steps(model, 16 + 3 * index, STEPS, draw=draw)
        if min(tokens) >= len(ascii_tokenizer.SPECIAL):  # neither an end, nor what is not shown
            found[tokenizer.decode(prompt)] = tokenizer.decode(tokens)
        index += 1
    return found


def prepare(folder: Path, cases: tuple[Case, ...], target: str) -> None:
    """Compile the cases in a folder, for `run` in a copy of it."""
    device, options = verify_mlc.TARGETS[target]
    index = []
    for case in cases:
        out = folder / case.name
        checkpoint, _ = verify_mlc.make_checkpoint(
            folder / f"{case.name}-checkpoint", case.model, case.format, dict(case.settings)
        )
        tokenizer = ascii_tokenizer.write_tokenizer(checkpoint)
        texts = clear_texts(reference.reference_model(checkpoint), tokenizer, TEXTS)
        shards = ["--tensor-parallel-shards", case.shards] if case.shards > 1 else []
        mlc_llm_model.configure(checkpoint, out, case.quantization, *shards)
        mlc_llm_model.convert(checkpoint, out, case.quantization)
        serial = target == "cpu" and case.model in verify_mlc.EXPERTS
        mlc_llm_model.compile(out, *options, device=device, serial=serial)
        index.append({**asdict(case), "name": case.name, "texts": texts})
        print(case.name, flush=True)
        content = {"mlc_llm": mlc_llm_model.revision(), "target": target, "cases": index}
        (folder / INDEX).write_text(json.dumps(content))


def serve(case: Row, folder: Path, target: str) -> Row:
    """Return the row of a case."""
    out, texts = folder / case["name"], case["texts"]
    library = verify_mlc.unpacked(out / "lib.so")

    def ask(prompt: str) -> str:
        answer = server.post("completions", prompt=prompt, max_tokens=STEPS, temperature=0)
        return str(answer["choices"][0]["text"])

    device, log = "cpu" if target == "cpu" else "cuda", folder / f"{case['name']}.log"
    row = {name: case[name] for name in ("model", "format", "quantization", "shards")}
    row = {"target": target, **row, "texts": len(texts), "tokens": STEPS}
    start = time.perf_counter()
    with mlc_llm_engine.serve(out, "--model-lib", library, log=log, device=device) as server:
        row["seconds_until_ready"] = round(time.perf_counter() - start, 1)
        row["equal_alone"] = sum(ask(prompt) == said for prompt, said in texts.items())
        with concurrent.futures.ThreadPoolExecutor(len(texts)) as pool:
            together = list(pool.map(ask, texts))
        row["equal_together"] = sum(map(str.__eq__, together, texts.values()))
    return row


def run(folder: Path) -> Iterator[Row]:
    """Yield the rows of a folder that `prepare` made; one that failed has an error."""
    content = json.loads((folder / INDEX).read_text())
    for case in content["cases"]:
        try:
            yield serve(case, folder, content["target"])
        except Exception as error:  # the other cases are worth having
            names = {name: case[name] for name in ("model", "format", "quantization", "shards")}
            yield {"target": content["target"], **names, "error": f"{type(error).__name__}: {error}"[-4000:]}


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=verify_mlc.TARGETS, default="cpu")
    parser.add_argument("--shards", type=int, default=1, help="leave out cases with more")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--folder", type=Path, help="of --prepare; must be empty")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="that --prepare made")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.prepare:
        if why := mlc_llm_model.missing():
            sys.exit(why)
        if arguments.folder is None:
            sys.exit("--prepare: --folder says where")
        arguments.folder.mkdir(parents=True, exist_ok=True)
        chosen = tuple(case for case in CASES if case.shards <= arguments.shards)
        prepare(arguments.folder, chosen, arguments.target)
        return 0
    if arguments.run is None:
        sys.exit("expected --prepare or --run")
    if why := mlc_llm_engine.missing():
        sys.exit(why)
    rows = []
    for row in run(arguments.run):
        print(row, flush=True)
        rows.append(row)
        if arguments.json:
            commit = json.loads((arguments.run / INDEX).read_text())["mlc_llm"]
            write(arguments.json, rows, mlc_llm=commit)
    return int(any(row.get("equal_together") != row.get("texts") or "error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
