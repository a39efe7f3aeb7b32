"""Loads the tokenizer and the model of a checkpoint that was looked at, or says in one line why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ess_kernels.analysis.model_sizes import number
from ess_kernels.commands.checkpoint import Checkpoint
from ess_kernels.commands.errors import UserError
from ess_kernels.commands.extras import installed
from ess_kernels.commands.headers import tensor_bytes
from ess_kernels.memory import budget_in_bytes, free_memory, free_on_gpu, size_text

MOST_LAYERS = 10_000


def load_config(checkpoint: Checkpoint, folder: Path, trust_remote_code: bool, attention: str | None) -> Any:
    """The configuration of transformers, from the checkpoint's clean copy in `folder`.

    Raises:
        UserError: transformers does not know the model, and code of the checkpoint may not run.
    """
    if not trust_remote_code:
        _check_known(checkpoint)
    options = {} if (own := _own_classes(checkpoint.config)) else {"trust_remote_code": trust_remote_code}
    try:
        config = _config_class(own).from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # a configuration that is strange raises anything
        raise UserError(f"{checkpoint.name}: config.json: {one_line(error)}") from error
    if (layers := number(config, "num_hidden_layers")) > MOST_LAYERS:  # building them would take for ever
        raise UserError(f"{checkpoint.name}: config.json: expected at most {MOST_LAYERS} layers, got {layers}")
    config._attn_implementation = attention  # also in the parts of a configuration, whatever the checkpoint asks for
    return config


def load_tokenizer(checkpoint: Checkpoint, folder: Path, trust_remote_code: bool) -> Any:
    """The tokenizer; None where the checkpoint has none.

    Raises:
        UserError: its files are not what transformers expects.
    """
    if not checkpoint.tokenizer:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(_needs_code(checkpoint, "the tokenizer")) from error
        raise UserError(f"{checkpoint.name}: the tokenizer cannot be read: {one_line(error)}") from error


def load_model(
    checkpoint: Checkpoint, folder: Path, config: Any, dtype: str, device: str, trust_remote_code: bool
) -> Any:
    """The model, with all of its weights from safetensors files, in evaluation mode on `device`.

    Raises:
        UserError: it cannot be built, or weights are missing in the checkpoint.
    """
    import torch

    own = _own_classes(checkpoint.config)
    options = {} if own else {"trust_remote_code": trust_remote_code}
    try:
        model, report = _model_class(own).from_pretrained(
            folder,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=config._attn_implementation,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise UserError(f"{checkpoint.name}: the model cannot be loaded: {one_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{checkpoint.name}: the checkpoint lacks weights of {type(model).__name__}: {missing[0]}{more}; random "
            "ones in their place would be measured"
        )
    return model.to(device).eval()


def _own_classes(config: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """transformers' own classes of configuration and causal language model for a `config.json`; None if it has none.

    Its automatic classes may give another one: flash-linear-attention, which some of transformers' modules import,
    registers its own for Mamba, Mamba-2 and others, and these run on a GPU only.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    names = CONFIG_MAPPING_NAMES.get(kind), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if not all(isinstance(name, str) for name in names):
        return None
    found = tuple(getattr(transformers, str(name), None) for name in names)
    return (found[0], found[1]) if None not in found else None


def _config_class(own: tuple[Any, Any] | None) -> Any:
    from transformers import AutoConfig

    return AutoConfig if own is None else own[0]


def _model_class(own: tuple[Any, Any] | None) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM if own is None else own[1]


def outline(checkpoint: Checkpoint, config: Any, dtype: str) -> Any:
    """The model without numbers in its weights (on the meta device); None where it cannot be built so."""
    import torch

    kind = None if dtype == "auto" else getattr(torch, dtype)
    own = _own_classes(checkpoint.config)
    try:
        with torch.device("meta"):
            build = _model_class(None).from_config if own is None else own[1]._from_config
            return build(config, dtype=kind or config.dtype or torch.float32)
    except Exception:  # loading it says why, in its own words
        return None


def check_layers(patterns: Sequence[str] | None, outline: Any) -> None:
    """`UserError` unless modules of these names are in the model of `outline`."""
    from ess_kernels.analysis.selection import selected

    try:
        selected(patterns, outline)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def check_memory(checkpoint: Checkpoint, config: Any, model: Any, dtype: str, device: str, length: int) -> None:
    """Refuses a model that is larger than what is free: by what its files hold, and by what `outline` made of it.

    Raises:
        UserError: there is too little memory, or a weights file is damaged.
    """
    float_bytes = {"float32": 4, "bfloat16": 2}.get(dtype)
    weights = sum(tensor_bytes(path, float_bytes) for path in checkpoint.weights)
    if model is not None:
        built = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
        weights = max(weights, built)
    analysis = analysis_bytes(config, length)
    places = [("memory", free_memory())]
    if device == "cuda":
        places.append(("memory of the GPU", free_on_gpu()))
    for place, free in places:
        if free is not None and weights + analysis > free:
            raise UserError(
                f"{checkpoint.name}: needs {size_text(weights + analysis)} ({size_text(weights)} of weights, "
                f"{size_text(analysis)} to analyze one layer at {length} tokens), and {size_text(free)} of {place} are "
                "free"
            )


def analysis_bytes(config: Any, length: int) -> int:
    """About what one layer's analysis takes: its tensors, scores of attention, logits and the engine's workspace."""
    width, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    scores = 8 * max(1, heads) * length**2
    layer = 16 * 4 * width * length + 4 * number(config, "vocab_size") * length
    return layer + scores + min(budget_in_bytes(), 4 * scores)


def _check_known(checkpoint: Checkpoint) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = checkpoint.config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{checkpoint.name}: config.json: expected model_type to be a name, got {kind!r}")
    if kind in CONFIG_MAPPING:
        return
    _import_fla(kind)
    if kind in CONFIG_MAPPING:
        return
    if "auto_map" in checkpoint.config:
        raise UserError(_needs_code(checkpoint, f"the model {kind!r}"))
    raise UserError(f"{checkpoint.name}: config.json: transformers knows no model_type {kind!r}")


def _needs_code(checkpoint: Checkpoint, part: str) -> str:
    return (
        f"{checkpoint.name}: {part} needs code of the checkpoint, which is not run: read it, and if you trust it, give "
        "--trust-remote-code"
    )


def _import_fla(kind: str) -> None:
    """flash-linear-attention tells transformers about its models when it is imported: only where it has this one."""
    import importlib.util

    if not (kind.isidentifier() and installed("fla")):
        return
    spec = importlib.util.find_spec("fla")
    if spec is not None and spec.origin and (Path(spec.origin).parent / "models" / kind).is_dir():
        import fla.models  # noqa: F401


def one_line(error: BaseException) -> str:
    """The first line of an error that says something, and the next one if that is only a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    while len(lines) > 1 and lines[0].endswith(":"):
        lines[:2] = [" ".join(lines[:2])]
    return ": ".join([type(error).__name__, *lines[:1]])
