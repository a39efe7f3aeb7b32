"""Small checkpoints with random weights, as transformers saves them, for tests of the command line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch

TEXT = "One thing. Another thing. And so on"
LONGEST = 64  # positions of the small Llama


def save_llama(folder: Path, layers: int = 2, longest: int = LONGEST) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=longest,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_mamba2(folder: Path) -> Path:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=256, hidden_size=16, num_heads=4, head_dim=8, state_size=8, n_groups=1, num_hidden_layers=1
    )
    Mamba2ForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def change_json(path: Path, **changes: object) -> None:
    """Sets keys of a JSON object in a file; a value of None takes the key out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


class Trap:
    """Unpickling it writes a file: proof that code of a checkpoint was run."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return (Path.write_text, (self.proof, "code was run"))


def write_trap(path: Path, proof: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(proof)))


def trap_code(proof: Path) -> str:
    """A Python file that writes the proof when it is imported."""
    return f"from pathlib import Path\nPath({str(proof)!r}).write_text('code was run')\n"
