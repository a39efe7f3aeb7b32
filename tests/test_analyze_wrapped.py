"""Models inside of something else: LoRA, DDP, FSDP, device maps, adapters of other packages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from captured import ids, tiny

import ess_kernels as ek
from ess_kernels.capture import adapters

pytest.importorskip("transformers")


def entropies(found):
    return [layer.entropy for layer in found.layers.values()]


def test_lora():
    peft = pytest.importorskip("peft")
    from ess_kernels.testing.tiny_models import tiny_model

    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj"])).eval()
    found = ek.analyze(model, ids())
    names = [name for name, _ in model.named_modules() if name.endswith("self_attn")]
    assert list(found.layers) == names
    assert found.skipped == {}
    # LoRA starts as no change
    for ours, plain in zip(entropies(found), entropies(ek.analyze(tiny("llama"), ids()))):
        assert torch.allclose(ours, plain, rtol=1e-5)


def test_device_map():
    pytest.importorskip("accelerate")
    from accelerate import cpu_offload

    from ess_kernels.testing.tiny_models import tiny_model

    model = cpu_offload(tiny_model("llama"), execution_device="cpu")
    found = ek.analyze(model, ids())
    assert found.skipped == {}
    for ours, plain in zip(entropies(found), entropies(ek.analyze(tiny("llama"), ids())), strict=True):
        assert torch.equal(ours, plain)


DISTRIBUTED = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from captured import ids
import ess_kernels as ek
from ess_kernels.testing.tiny_models import tiny_model
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", USE_LIBUV="0")
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
plain = [layer.entropy for layer in ek.analyze(tiny_model("llama"), ids()).layers.values()]
parallel = torch.nn.parallel.DistributedDataParallel(tiny_model("llama"))
from torch.distributed.fsdp import fully_shard
sharded = tiny_model("llama")
for layer in sharded.model.layers:
    fully_shard(layer)
fully_shard(sharded)
for model in (parallel, sharded):
    found = ek.analyze(model, ids())
    assert set(found.layers) <= {{name for name, _ in model.named_modules()}}, found
    assert found.skipped == {{}}, found.skipped
    ours = [layer.entropy for layer in found.layers.values()]
    assert len(ours) == len(plain) and all(torch.equal(a, b) for a, b in zip(ours, plain))
    print(type(model).__name__, "ok", found.notes)
torch.distributed.destroy_process_group()
"""


@pytest.mark.thorough
def test_data_parallel_and_sharded():
    code = DISTRIBUTED.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(" ok ") == 2


def test_adapters_of_other_packages(monkeypatch):
    """An entry point returns the module inside of its own models, and None for others."""

    class Box:
        def __init__(self, inner):
            self.inner = inner

    def adapter(model, patches):
        return model.inner if isinstance(model, Box) else None

    class Entry:
        load = staticmethod(lambda: adapter)

    monkeypatch.setattr(adapters, "entry_points", lambda group: [Entry] if group == "ess_kernels.adapters" else [])
    found = ek.analyze(Box(Box(tiny("llama"))), ids())
    assert list(found.layers) == list(ek.analyze(tiny("llama"), ids()).layers)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        ek.analyze(Box("llama"), ids())


def test_components_that_stand_in_are_taken_out():
    """As in TransformerLens' bridge, whose components compute attention in their own way."""
    from ess_kernels.testing.tiny_models import tiny_model

    class GeneralizedComponent(torch.nn.Module):
        def __init__(self, original):
            super().__init__()
            self.original_component = original

        def forward(self, *args, **kwargs):
            raise AssertionError("the component runs")

    class TransformerBridge(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.original_model = model

    model = tiny_model("llama")
    plain = ek.analyze(model, ids())
    for layer in model.model.layers:
        layer.self_attn = GeneralizedComponent(layer.self_attn)
    stand_ins = [layer.self_attn for layer in model.model.layers]
    found = ek.analyze(TransformerBridge(model), ids())
    assert list(found.layers) == list(plain.layers)
    assert all(torch.equal(a, b) for a, b in zip(entropies(found), entropies(plain), strict=True))
    assert [layer.self_attn for layer in model.model.layers] == stand_ins
    with pytest.raises(AssertionError, match="the component runs"):
        model(ids())


@pytest.mark.slow
def test_transformer_lens():
    lens = pytest.importorskip("transformer_lens.model_bridge", reason="transformer-lens is not installed")
    from ess_kernels.testing.tiny_models import tiny_model

    model = tiny_model("gpt2")
    plain = ek.analyze(model, ids())
    bridge = lens.TransformerBridge.boot_transformers("gpt2", hf_model=model)
    found = ek.analyze(bridge, ids())
    assert list(found.layers) == list(plain.layers)
    for ours, theirs in zip(entropies(found), entropies(plain), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4)
