"""Runs the embedded model on a text and measures the ESS of every layer, head and position."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from ess_kernels import aggregate, backends
from ess_kernels._limits import MAX_DEMO_BYTES as MAX_BYTES
from ess_kernels._progress import progress
from ess_kernels._version import __version__
from ess_kernels.analysis.result import Analysis, LayerResult
from ess_kernels.backends.base import Task
from ess_kernels.demo.model import MIXERS, ByteLM, Mixer
from ess_kernels.metrics import entropy_ess, tolerance_ess
from ess_kernels.operators.structure import Operator

SCHEMA = "ess-kernels/demo/1"  # changes when a field of the JSON report changes its meaning or goes away
TOLERANCES = (1e-1, 1e-3, 1e-5)  # absolute; those of the paper's figures


@dataclass(frozen=True)
class Layer:
    """One layer's numbers, positions 1..L-1 (`P = L - 1`), tensors on the CPU."""

    index: int
    mixer: str  # a key of `MIXERS`
    heads: int
    state_size: int | None  # None: attention, whose state is the i positions before it
    cap: Tensor  # int64 [P]: min(state_size, i, L - i)
    entropy_ess: Tensor  # float64 [heads, P]
    tolerance_ess: Tensor  # int64 [tolerances, heads, P]
    utilisation: float  # mean of entropy-ESS / cap
    unresolved: float  # share of the counts that no certificate vouches for
    backends: dict[str, str]  # what computed each metric
    seconds: float  # both metrics together

    @property
    def title(self) -> str:
        return MIXERS[self.mixer].title

    @property
    def mean_entropy(self) -> float:
        """Over heads and positions."""
        return float(aggregate.average_ess(self.entropy_ess))

    @property
    def mean_tolerance(self) -> list[float]:
        """One a tolerance, over heads and positions."""
        return [float(aggregate.average_ess(counts)) for counts in self.tolerance_ess]


@dataclass(frozen=True)
class Report:
    """What the demo found; `to_json` follows `schema.json` beside this file."""

    text: bytes
    bits_per_byte: float  # the model's cross-entropy on the text
    model: dict[str, Any]
    backend: str
    device: str
    layers: list[Layer]
    seconds: float  # everything: loading, the forward pass, all layers

    @property
    def length(self) -> int:
        return len(self.text)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`; a number that is not finite becomes None."""
        return {
            "schema": SCHEMA,
            "versions": _versions(),
            "model": self.model,
            "text": {
                "bytes": self.length,
                "sha256": hashlib.sha256(self.text).hexdigest(),
                "bits_per_byte": self.bits_per_byte,
            },
            "backend": self.backend,
            "device": self.device,
            "tolerances": list(TOLERANCES),
            "positions": list(range(1, self.length)),
            "layers": [
                {
                    "index": layer.index,
                    "mixer": layer.mixer,
                    "title": layer.title,
                    "heads": layer.heads,
                    "tss": layer.state_size,
                    "cap": layer.cap.tolist(),
                    "entropy_ess": [[_number(x) for x in head] for head in layer.entropy_ess.tolist()],
                    "tolerance_ess": layer.tolerance_ess.tolist(),
                    "mean_entropy_ess": _number(layer.mean_entropy),
                    "mean_tolerance_ess": [_number(x) for x in layer.mean_tolerance],
                    "utilisation": _number(layer.utilisation),
                    "backends": layer.backends,
                    "seconds": layer.seconds,
                }
                for layer in self.layers
            ],
            "seconds": self.seconds,
        }

    def analysis(self) -> Analysis:
        """The same in the form that `ess_kernels.analyze` gives, for its tables, pictures and reports.

        A token is a byte. Nothing is captured, for the model gives its operators itself: there is no capture error.
        """
        return Analysis(
            layers={found.name: found for found in map(self._layer_result, self.layers)},
            skipped={},
            model="ByteLM",
            tolerances=TOLERANCES,
            tokens=[[bytes([byte]).decode("ascii", "backslashreplace") for byte in self.text]],
            notes=(
                f"The text has {self.length} bytes, on which the model needs {self.bits_per_byte:.2f} bits per byte.",
                "The model gives its operators itself: nothing was captured, and there is no capture error.",
            ),
            versions=_versions(),
            seconds=self.seconds,
        )

    def _layer_result(self, layer: Layer) -> LayerResult:
        return LayerResult(
            name=f"blocks.{layer.index}.mixer",
            mixer=layer.mixer,
            route="module",
            state_size=layer.state_size,
            length=self.length,
            positions=torch.arange(1, self.length),
            cap=layer.cap[None],
            valid=torch.ones(1, self.length - 1, dtype=torch.bool),
            entropy=layer.entropy_ess[None],
            tolerance={tau: counts[None] for tau, counts in zip(TOLERANCES, layer.tolerance_ess)},
            unresolved=layer.unresolved,
            capture_error=math.nan,
            check="not captured",
            dtype="float32",
            backends=layer.backends,
            seconds=layer.seconds,
        )


def default_text() -> bytes:
    """The passage that comes with the package: prose on three subjects around a few lines of code."""
    return _file("text.txt")


def load_model(device: str | torch.device = "cpu") -> tuple[ByteLM, dict[str, Any]]:
    """The trained model and what is known of its training (`bench/train_demo.py`). Needs safetensors."""
    from safetensors.torch import load

    data = _file("weights.safetensors")
    weights = {name: value.float() for name, value in load(data).items()}
    model = ByteLM()
    model.load_state_dict(weights)
    about: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "weights_bytes": len(data)}
    for name, value in sorted(_metadata(data).items()):
        about[name] = float(value) if name.endswith("_bits_per_byte") else value
    return model.to(device).eval().requires_grad_(False), about


def _file(name: str) -> bytes:
    return resources.files("ess_kernels.demo").joinpath(name).read_bytes()


def _metadata(data: bytes) -> dict[str, str]:
    """A safetensors file's own notes: safetensors.torch.load leaves them out."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])["__metadata__"]


def measure(text: bytes, backend: str = "auto", device: str = "cpu") -> Report:
    """Run the model on `text` and measure every layer, head, position and tolerance.

    Raises `ValueError` if the text has fewer than 2 or more than `MAX_BYTES` bytes, and whatever the backend raises.
    """
    if not 2 <= len(text) <= MAX_BYTES:
        raise ValueError(f"the demo takes texts of 2 to {MAX_BYTES} bytes, got {len(text)}")
    begin = time.perf_counter()
    model, about = load_model(device)
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[None].to(device)
    with torch.no_grad():
        bits = float(model.loss(tokens))
        mixers = model.operators(tokens)
        layers = []
        with progress(2 * len(mixers), "measuring") as bar:
            for index, (mixer, op) in enumerate(mixers):
                layers.append(_measure_layer(index, mixer, op, backend, bar.advance))
    return Report(text, bits, about, backend, device, layers, time.perf_counter() - begin)


def _measure_layer(index: int, mixer: Mixer, op: Operator, backend: str, done: Callable[[], None]) -> Layer:
    tasks: tuple[Task, ...] = ("entropy_ess", "tolerance_ess")
    used: dict[str, str] = {task: backends.choose(backend, task, op).name for task in tasks}
    begin = time.perf_counter()
    entropy = entropy_ess(op, backend=backend)
    _wait(op)
    done()
    counts, certificate = tolerance_ess(op, atol=list(TOLERANCES), backend=backend, certificate=True)
    _wait(op)
    seconds = time.perf_counter() - begin
    done()
    return Layer(
        index=index,
        mixer=next(name for name, kind in MIXERS.items() if isinstance(mixer, kind)),
        heads=op.num_heads,
        state_size=op.state_size,
        cap=aggregate.cap(op).cpu(),
        entropy_ess=entropy.flatten(0, -2).cpu(),
        tolerance_ess=counts.flatten(1, -2).cpu(),
        utilisation=float(aggregate.utilisation(entropy, op, against="cap").mean()),
        unresolved=float(certificate.unresolved.double().mean()),
        backends=used,
        seconds=seconds,
    )


def _wait(op: Operator) -> None:
    """Let the device finish, so that the time taken is this metric's own."""
    if op.device.type == "cuda":
        torch.cuda.synchronize(op.device)


def _versions() -> dict[str, str]:
    return {"ess_kernels": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None
