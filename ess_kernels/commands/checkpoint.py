"""Finds the folder of a checkpoint and looks at its files, before anything of it is loaded.

A checkpoint may come from a stranger. Here it is only listed, and its JSON files are parsed: nothing in it is run, and
nothing is unpickled. `clean_copy` then makes a folder that holds nothing else but what was looked at.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ess_kernels.commands.errors import UserError
from ess_kernels.commands.offline import hugging_face

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# what tokenizers of transformers read; none of these formats can hold code
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("spm.model", "source.spm", "target.spm", "tekken.json", "tiktoken.model"),
)
# keys of config.json that say where weights or functions come from: the command line decides these
DROPPED_KEYS = frozenset({"attn_implementation", "_attn_implementation", "transformers_weights", "_name_or_path"})
MOST_JSON_BYTES = 2**28
CONVERSION = (
    "import sys; from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained(sys.argv[1], use_safetensors=False, local_files_only=True).save_pretrained(sys.argv[2])"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        name: as the caller typed it, for messages.
        folder: where its files are.
        config: `config.json`.
        weights: the safetensors files.
        tokenizer: names of the tokenizer's files; empty if it has none.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    tokenizer: tuple[str, ...]


def find_checkpoint(name: str, download: bool, trust_remote_code: bool) -> Checkpoint:
    """The checkpoint in a folder, or of that name in the cache of the Hugging Face hub.

    Args:
        name: a folder, or a name such as `org/model`.
        download: whether files that are missing in the cache may be fetched. Otherwise no connection is opened.
        trust_remote_code: whether Python files are fetched too.

    Raises:
        UserError: there is none, a file is missing or damaged, or its weights are pickled.
    """
    folder = Path(name) if os.path.isdir(name) else _folder_in_cache(name, download, trust_remote_code)
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise UserError(f"{name}: is an adapter without its model: merge it into the model, and save that")
        raise UserError(f"{name}: expected a checkpoint, found no config.json there")
    config = read_json(folder / "config.json")
    return Checkpoint(
        name, folder, config, _weights(name, folder), tuple(f for f in TOKENIZER_FILES if (folder / f).is_file())
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_JSON_BYTES + 1)
        if len(data) > MOST_JSON_BYTES:
            raise UserError(f"{path}: expected at most {MOST_JSON_BYTES} bytes, got more")
        value = json.loads(data)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


@contextmanager
def clean_copy(checkpoint: Checkpoint) -> Iterator[Path]:
    """A temporary folder with nothing but `config.json`, safetensors files and the tokenizer's files: a view, by links.

    Libraries look for many other files beside these, some of them pickled or Python, and read names of files from
    `config.json`. In this folder there is nothing for them to find.
    """
    with TemporaryDirectory(prefix="ess-kernels-") as name:
        folder = Path(name)
        kept = {key: value for key, value in checkpoint.config.items() if key not in DROPPED_KEYS}
        (folder / "config.json").write_text(json.dumps(kept))
        for path in (*checkpoint.weights, *(checkpoint.folder / file for file in checkpoint.tokenizer)):
            (folder / path.name).symlink_to(path.absolute())
        if len(checkpoint.weights) > 1 or checkpoint.weights[0].name != WEIGHTS:
            (folder / INDEX).symlink_to((checkpoint.folder / INDEX).absolute())
        yield folder


def _weights(name: str, folder: Path) -> tuple[Path, ...]:
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickled = [file for file in PICKLED if (folder / file).is_file()]
    if not pickled:
        raise UserError(f"{name}: expected {WEIGHTS} or {INDEX}, found neither")
    target = f"{name.rstrip('/')}-safetensors" if os.path.isdir(name) else f"{name.split('/')[-1]}-safetensors"
    command = shlex.join(["python", "-c", CONVERSION, str(folder), target])
    tokenizer = [str(folder / file) for file in TOKENIZER_FILES if (folder / file).is_file()]
    copy = f" && {shlex.join(['cp', *tokenizer, target])}" if tokenizer else ""
    raise UserError(
        f"{name}: {pickled[0]} is a pickle, which can run code when it is read, so only safetensors files are. "
        f"This converts it: {command}{copy}"
    )


def _shards(folder: Path) -> tuple[Path, ...]:
    """The files that the index names: in this folder, and safetensors, whatever the index says."""
    index = folder / INDEX
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: expected weight_map to name a file for each weight")
    shards = []
    for name in sorted(set(names.values())):
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise UserError(f"{index}: expected names of safetensors files in the same folder, got {name!r}")
        if not (folder / name).is_file():
            raise UserError(f"{index}: there is no file {name}")
        shards.append(folder / name)
    return tuple(shards)


def _folder_in_cache(name: str, download: bool, trust_remote_code: bool) -> Path:
    if os.path.exists(name):
        raise UserError(f"{name}: expected the folder of a checkpoint, got a file")
    if not _is_hub_name(name):
        raise UserError(f"{name}: there is no such folder")
    wanted = ["config.json", "*.safetensors", INDEX, *TOKENIZER_FILES, *(["*.py"] if trust_remote_code else [])]
    try:
        with hugging_face(download):
            from huggingface_hub import snapshot_download

            folder = snapshot_download(
                name, local_files_only=not download, allow_patterns=wanted, ignore_patterns=["*/*"]
            )
            return Path(folder)
    except Exception as error:  # from the hub, the network, the disk
        if not download:
            raise UserError(
                f"{name}: there is no such folder, nor a checkpoint of that name in the cache (--download fetches it)"
            ) from error
        raise UserError(f"{name}: cannot be downloaded: {type(error).__name__}: {error}") from error


def _is_hub_name(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
