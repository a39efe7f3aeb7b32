"""Tiny random models of transformers' causal-LM architectures: on the CPU, in float32, and nothing is downloaded.

    model = tiny_model("qwen3_next")
    with torch.no_grad():
        logits = model(**tiny_inputs("qwen3_next", model), use_cache=False).logits

A configuration is the default one with every size made small (`tiny_sizes.py`), with one layer of every kind, and with
what single architectures need besides (`tiny_particulars.py`). Weights are wide enough for attention to be far from
uniform. Parameters whose entries are all equal at first, such as gates, biases and norms, are moved a little, so that
no part of a mixer is zero or the same for all channels. Recurrences remember more than a few tokens.

Written for transformers 5.24. With other versions architectures may fail that `NOT_BUILT` does not have; with 4.57 most
of them run.
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from .tiny_particulars import NOT_BUILT, PARTICULARS
from .tiny_sizes import ALWAYS_GIVEN, KEY_HEADS, LAYER_COUNTS, SIZES, STATE_GROUPS, WEIGHT_WIDTH, WEIGHT_WIDTHS

__all__ = ["NOT_BUILT", "CannotBuild", "causal_lm_names", "tiny_config", "tiny_inputs", "tiny_model"]

MOST_PARAMETERS = 60_000_000
# Padding, beginning and end; words come after them.
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class CannotBuild(RuntimeError):
    """An architecture has no tiny model here; the message is the reason."""


def causal_lm_names() -> list[str]:
    """The names of all architectures that the installed transformers counts as causal language models, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str) -> Any:
    """The configuration of the tiny model, of the class that the architecture's model takes.

    Args:
        name: one of `causal_lm_names()`.

    Raises:
        ValueError: there is no such architecture.
        CannotBuild: `NOT_BUILT` has it, with the reason.
    """
    if name not in causal_lm_names():
        raise ValueError(f"name: expected one of causal_lm_names(), got {name!r}")
    if name in NOT_BUILT:
        raise CannotBuild(f"{name}: {NOT_BUILT[name]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        standard = _part_for(_model_class(name), _config_class(name)())
        return _shrunk(standard, PARTICULARS[name].values if name in PARTICULARS else {})


def tiny_model(name: str, attn_implementation: str = "sdpa", seed: int = 0) -> Any:
    """A model with random weights, in evaluation mode, float32, on the CPU; the same seed gives the same weights.

    Args:
        name: one of `causal_lm_names()`.
        attn_implementation: `"sdpa"`, `"eager"` or another name that transformers knows. Architectures that do not
            support it take `"eager"`.
        seed: of the weights. The global random state stays as it was.

    Raises:
        ValueError: there is no such architecture.
        CannotBuild: `NOT_BUILT` has it, with the reason, or it has more than 60 million parameters.
    """
    config, model_class = tiny_config(name), _model_class(name)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = _with_attention(model_class, config, attn_implementation)
        _vary_constants(model)
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > MOST_PARAMETERS:
        raise CannotBuild(f"{name}: {size / 1e6:.0f} million parameters")
    return model.eval()


def tiny_inputs(name: str, model: Any, batch: int = 2, length: int = 24, seed: int = 1) -> dict[str, Any]:
    """Keyword arguments of `model(...)`: random tokens without padding.

    Args:
        name: the architecture of `model`.
        model: what `tiny_model(name)` returned.
        batch: the number of sequences.
        length: the tokens of each sequence.
        seed: of the tokens.

    Returns:
        `input_ids` int64 `[batch, length]`; with several codebooks (MusicGen) `[batch * num_codebooks, length]`.
    """
    rows = batch * model.config.num_codebooks if name.startswith("musicgen") else batch
    generator = torch.Generator().manual_seed(seed)
    words = range(len(SPECIAL_TOKENS), SIZES["vocab_size"])
    return {"input_ids": torch.randint(words.start, words.stop, (rows, length), generator=generator)}


# --- configurations ---------------------------------------------------------------------------------------------------


def _config_class(name: str) -> Any:
    """The class in transformers itself.

    Its automatic classes, such as `AutoModelForCausalLM`, may give another one: fla, when it is imported, registers its
    own for `"mamba"`, `"mamba2"`, `"bitnet"` and others. Some of transformers' modules import fla.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return getattr(transformers, CONFIG_MAPPING_NAMES[name])


def _model_class(name: str) -> Any:
    """The class in transformers itself, whatever other packages have registered."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])


def _part_for(model_class: Any, config: Any) -> Any:
    """What a model of this class takes: `config` itself, or the part of it that describes the text."""
    wanted = model_class.config_class
    candidates = (config, *_parts(config).values())
    return next((part for part in candidates if isinstance(part, wanted)), config)


def _parts(config: Any) -> dict[str, Any]:
    """The configurations inside of a configuration, by name."""
    from transformers import PretrainedConfig

    return {name: value for name, value in vars(config).items() if isinstance(value, PretrainedConfig)}


def _shrunk(standard: Any, particular: dict[str, Any]) -> Any:
    """A small configuration of the same class; values in `particular` come before all others."""
    values = _given(standard)
    small = {name: size for name in values if (size := _size(name, values)) is not None}
    small |= _kept_layers(values)
    small |= {name: token for name, token in SPECIAL_TOKENS.items() if name in values}
    small |= particular
    for name, part in _parts(standard).items():
        small[name] = _shrunk(part, particular.get(name, {}))
    config = type(standard)(**small)
    _fit_rotary_sections(config)
    return config


def _given(config: Any) -> dict[str, Any]:
    """The values that can be given to a configuration, by name; its other attributes are derived from these.

    Classes annotate such names; before transformers 5 they are arguments of `__init__`. Some values are kept under
    another name.
    """
    names = dict.fromkeys(name for base in type(config).__mro__ for name in inspect.get_annotations(base))
    names |= dict.fromkeys(inspect.signature(type(config)).parameters)
    kept = {name: type(config).attribute_map.get(name, name) for name in names}
    return {name: vars(config)[attribute] for name, attribute in kept.items() if attribute in vars(config)}


def _size(name: str, values: dict[str, Any]) -> Any:
    """The small value that takes the place of `values[name]`, or None."""
    value = values[name]
    if name in WEIGHT_WIDTHS and isinstance(value, float):
        return WEIGHT_WIDTH
    if name == "use_sliding_window":
        return True
    if not value and name in ALWAYS_GIVEN:
        return SIZES[name]
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if name in KEY_HEADS:
        heads = next((values[heads] for heads in ("num_attention_heads", "n_head") if heads in values), value + 1)
        return SIZES["num_attention_heads"] if value >= heads else min(value, 2)
    if name in STATE_GROUPS:
        return min(value, 2)
    return min(value, SIZES[name]) if name in SIZES else None


def _kept_layers(values: dict[str, Any]) -> dict[str, Any]:
    """Lists that have an entry for every layer, cut to the first layer of each kind, with the number of layers left."""
    count = next((values[name] for name in LAYER_COUNTS if isinstance(values.get(name), int)), 0)
    lists = {name: value for name, value in values.items() if _says_kinds(value, count)}
    if not lists:
        return {}
    kept = [layer for layer in range(count) if any(kinds.index(kinds[layer]) == layer for kinds in lists.values())]
    kept = kept if len(kept) > 1 else [0, 1]
    counts = {name: len(kept) for name in LAYER_COUNTS if name in values}
    return {name: [kinds[layer] for layer in kept] for name, kinds in lists.items()} | counts


def _says_kinds(value: Any, count: int) -> bool:
    """Whether a value is a list with the kind of each of `count` layers, and not one of their numbers."""
    return isinstance(value, list) and 1 < len(value) == count and value != list(range(count))


def _fit_rotary_sections(config: Any) -> None:
    """Makes rotary positions with several axes as wide as a small head. Text has the same position on all axes."""
    rotary = getattr(config, "rope_parameters", None)
    if not isinstance(rotary, dict):
        return
    for group in (rotary, *rotary.values()):
        if isinstance(group, dict) and "mrope_section" in group:
            pairs = int(config.head_dim * group.get("partial_rotary_factor", 1.0)) // 2
            group["mrope_section"] = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]


# --- weights ----------------------------------------------------------------------------------------------------------


def _with_attention(model_class: Any, config: Any, attn_implementation: str) -> Any:
    try:
        return model_class._from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        if attn_implementation == "eager" or "attention" not in str(error):
            raise
    return model_class._from_config(config, attn_implementation="eager", dtype=torch.float32)


def _vary_constants(model: torch.nn.Module) -> None:
    """Adds a little noise to parameters whose entries are all equal, and makes biases of steps small."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _is_constant(parameter):
                noisy = parameter + 0.1 * torch.randn_like(parameter)
                parameter.copy_(_step_biases(parameter) if name.endswith("dt_bias") else noisy)


def _step_biases(like: Tensor) -> Tensor:
    """Biases of softplus for steps from 0.001 to 0.1, as Mamba starts with them: a larger step forgets all at once."""
    steps = torch.exp(torch.empty_like(like).uniform_(math.log(0.001), math.log(0.1)))
    return steps + torch.log(-torch.expm1(-steps))


def _is_constant(x: Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0 and bool((x == x.flatten()[0]).all())
