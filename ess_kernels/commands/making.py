"""Models of the command line as functions that other processes can call, and what identifies each without making it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ess_kernels.commands.errors import UserError

DEMO = "demo"  # the embedded model's name; a folder of that name is ./demo


@dataclass(frozen=True)
class EmbeddedModel:
    """Makes the demo's model, whose tokens are bytes."""

    device: str = "cpu"

    def __call__(self) -> tuple[Any, Any]:
        from ess_kernels.demo import load_model

        return load_model(self.device)[0], bytes_of

    def identity(self) -> dict[str, Any]:
        weights = resources.files("ess_kernels.demo").joinpath("weights.safetensors").read_bytes()
        return {"name": DEMO, "sha256": hashlib.sha256(weights).hexdigest(), "device": self.device}


def bytes_of(text: str) -> list[int]:
    """The embedded model's tokens."""
    return list(text.encode())


@dataclass(frozen=True)
class CheckpointModel:
    """Makes the model and the tokenizer of a checkpoint, with the options of `ess-kernels analyze`.

    Attributes:
        name: a folder, or a name in the cache of the Hugging Face hub.
        most_tokens: how many tokens a prompt may have: what memory is needed for.
    """

    name: str
    dtype: str
    device: str
    attention: str | None
    download: bool
    trust_remote_code: bool
    most_tokens: int

    def __call__(self) -> tuple[Any, Any]:
        return self._prepared(None, None, make=True)

    def check(self, layers: Sequence[str] | None, texts_of: object) -> None:
        """Looks at all but the weights.

        Args:
            layers: names of layers, which must be there.
            texts_of: a file whose prompts are texts, so that there must be a tokenizer; None: there is none.

        Raises:
            UserError: there is no such checkpoint, or it cannot be loaded.
        """
        self._prepared(layers, texts_of, make=False)

    def _prepared(self, layers: Sequence[str] | None, texts_of: object, make: bool) -> Any:
        from ess_kernels.analysis.model_sizes import longest
        from ess_kernels.commands import loading
        from ess_kernels.commands.checkpoint import clean_copy, find_checkpoint
        from ess_kernels.commands.offline import hugging_face

        checkpoint = find_checkpoint(self.name, self.download, self.trust_remote_code)
        trust = self.trust_remote_code
        with hugging_face(self.download), clean_copy(checkpoint) as copy:
            folder = checkpoint.folder if trust else copy
            config = loading.load_config(checkpoint, folder, trust, self.attention)
            tokenizer = loading.load_tokenizer(checkpoint, folder, trust)
            if tokenizer is None and texts_of is not None:
                raise UserError(
                    f"{self.name}: has no tokenizer, and the prompts of {texts_of} are texts: expected lists of the "
                    "tokens' numbers"
                )
            outline = loading.outline(checkpoint, config, self.dtype)
            if outline is not None:
                loading.check_layers(layers, outline)
            most = min(self.most_tokens, longest(config) or self.most_tokens)
            loading.check_memory(checkpoint, config, outline, self.dtype, self.device, most)
            if not make:
                return None
            return loading.load_model(checkpoint, folder, config, self.dtype, self.device, trust), tokenizer

    def identity(self) -> dict[str, Any]:
        """The checksums of all files that have a part in the model, and how it is loaded."""
        from ess_kernels.analysis.dataset.inputs import file_sha256
        from ess_kernels.commands.checkpoint import find_checkpoint

        found = find_checkpoint(self.name, self.download, self.trust_remote_code)
        code = sorted(found.folder.glob("*.py")) if self.trust_remote_code else []
        paths = [
            found.folder / "config.json",
            *found.weights,
            *(found.folder / name for name in found.tokenizer),
            *code,
        ]
        return {
            "files": {path.name: file_sha256(path) for path in paths},
            "dtype": self.dtype,
            "device": self.device,
            "attention": self.attention,
        }
