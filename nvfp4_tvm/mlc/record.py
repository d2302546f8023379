"""What must be known of a checkpoint when its model is compiled: which layers it leaves unquantized.

``gen_config`` writes this record into ``model_config`` of ``mlc-chat-config.json``, under the key ``nvfp4``.
Whatever reads that file (``compile``, the just-in-time compilation and the hash that its cache goes by) hands the
record on, because the configurations of all models inherit from one class, which is taught to carry it.
"""

from __future__ import annotations

import functools
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvfp4_tvm.checkpoint.base import open_checkpoint, quantization_config
from nvfp4_tvm.checkpoint.compressed_tensors import CompressedTensors
from nvfp4_tvm.checkpoint.modelopt import ModelOpt
from nvfp4_tvm.checkpoint.reader import Checkpoint
from nvfp4_tvm.checkpoint.storage import read_json
from nvfp4_tvm.errors import CheckpointError
from nvfp4_tvm.mlc.quantization import KIND
from nvfp4_tvm.mlc.rebind import rebind

KEY = "nvfp4"
_ATTRIBUTE = "_nvfp4_record"
_FOLDER = "_nvfp4_folder"


@dataclass(frozen=True)
class Record:
    """The layers of an NVFP4 checkpoint.

    Attributes
    ----------
    format : str
        The checkpoint's format, as :class:`~nvfp4_tvm.checkpoint.reader.Checkpoint` calls it.
    unquantized : frozenset of str
        Modules of the checkpoint with a matrix as their weight that are not NVFP4.
    """

    format: str
    unquantized: frozenset[str]

    def is_quantized(self, module: str) -> bool:
        """Return whether a module of the checkpoint is NVFP4."""
        return module not in self.unquantized

    def asdict(self) -> dict[str, Any]:
        """Return the record as JSON has it."""
        return {"format": self.format, "unquantized": sorted(self.unquantized)}

    @classmethod
    def from_dict(cls, value: Any) -> Record:
        """Read a record.

        Raises
        ------
        CheckpointError
            If it is none.
        """
        modules = value.get("unquantized") if isinstance(value, dict) else None
        form = value.get("format") if isinstance(value, dict) else None
        if not isinstance(form, str) or not isinstance(modules, list):
            raise CheckpointError(
                f"mlc-chat-config.json: model_config.{KEY}: found {value!r:.80}, expected format and unquantized: "
                "write it again with gen_config"
            )
        return cls(form, frozenset(map(str, modules)))


def record_checkpoint(checkpoint: Checkpoint) -> Record | None:
    """Return the record of a checkpoint, None if no layer of it is NVFP4.

    Raises
    ------
    CheckpointError
        If a layer is in another format, or damaged.
    """
    layers = checkpoint.layers(read_data=False).values()
    refused = [layer.refusal for layer in layers if layer.refusal]
    if refused:
        raise CheckpointError(refused[0])
    if not any(layer.format == KIND for layer in layers):
        return None
    plain = (layer.name for layer in layers if layer.format != KIND and len(layer.shape) > 1)
    return Record(checkpoint.format, frozenset(plain))


def record_folder(folder: Path) -> Record | None:
    """Return the record of the checkpoint in a folder, None if no layer of it is NVFP4.

    Raises
    ------
    CheckpointError
        As `record_checkpoint`, or if the configuration speaks of quantization and there are no weights.
    """
    config = folder / "config.json"
    quantized = quantization_config(read_json(config), config) is not None
    if not quantized and not (folder / "hf_quant_config.json").is_file():
        return None
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}: found no safetensors files, expected the weights beside config.json: their headers say "
            "which layers are quantized"
        )
    return record_checkpoint(open_checkpoint(folder))


def record_of(config: Any) -> Record | None:
    """Return the record that a model's configuration carries, or that of the checkpoint it was read from."""
    folder = config.__dict__.pop(_FOLDER, None)
    if folder is not None and (folder / "config.json").is_file():
        setattr(config, _ATTRIBUTE, record_folder(folder))
    return getattr(config, _ATTRIBUTE, None)


def _is_read_here(quantization: Any) -> bool:
    """Return whether a ``quantization_config`` is of a format that this package reads."""
    formats = (ModelOpt, CompressedTensors)
    return isinstance(quantization, dict) and any(
        form.detect({"quantization_config": quantization}, Path()) for form in formats
    )


def carry_records(module: Any) -> None:
    """Teach ``mlc_llm.support.config.ConfigBase`` to keep the record from file to object and back."""
    base = module.ConfigBase
    from_dict, from_file, asdict = base.from_dict.__func__, base.from_file.__func__, base.asdict

    @functools.wraps(from_dict)
    def from_dict_with_record(cls: type, source: dict[str, Any]) -> Any:
        source = dict(source)
        value = source.pop(KEY, None)
        if _is_read_here(source.get("quantization_config")):
            del source["quantization_config"]  # some models refuse what they do not know
        config = from_dict(cls, source)
        if value is not None:
            setattr(config, _ATTRIBUTE, Record.from_dict(value))
        return config

    @functools.wraps(from_file)
    def from_file_with_folder(cls: type, source: Path) -> Any:
        config = from_file(cls, source)
        setattr(config, _FOLDER, Path(source).parent)
        return config

    @functools.wraps(asdict)
    def asdict_with_record(self: Any) -> dict[str, Any]:
        result = asdict(self)
        record = getattr(self, _ATTRIBUTE, None)
        if record is not None:
            result[KEY] = record.asdict()
        return result

    base.from_dict = classmethod(from_dict_with_record)
    base.from_file = classmethod(from_file_with_folder)
    base.asdict = asdict_with_record


def write_records(module: Any) -> None:
    """Let ``gen_config`` write the record of the checkpoint whose configuration it reads."""
    gen_config = module.gen_config
    signature = inspect.signature(gen_config)

    @functools.wraps(gen_config)
    def gen_config_with_record(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        record = None
        if given["quantization"].kind == KIND:
            record = record_folder(Path(given["config"]).parent)
        result = gen_config(*args, **kwargs)
        if record is not None:
            file = Path(given["output"]) / "mlc-chat-config.json"
            config = json.loads(file.read_text(encoding="utf-8"))
            config["model_config"][KEY] = record.asdict()
            file.write_text(json.dumps(config, indent=2), encoding="utf-8")
        return result

    rebind(module, "gen_config", gen_config_with_record)
