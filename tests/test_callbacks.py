"""ESS during training: real Trainers on tiny models, which train as if nobody had measured."""

import csv
import json
import logging
import math
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from ess_kernels import analysis
from ess_kernels.analysis.callbacks.probe import Probe, unwrapped

IDS = torch.arange(1, 13).reshape(1, 12)
NAMES = [f"model.layers.{number}.self_attn" for number in range(2)]


def tiny_llama(seed=0):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        attention_dropout=0.1,  # training draws random numbers
    )
    return transformers.LlamaForCausalLM(config)


def sentences(count=16):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(0, 32, (count, 10), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer_of(model, folder, **options):
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=sentences())


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_measured_at_these_steps_and_never_twice():
    probe = Probe({"input_ids": IDS}, every=3)
    assert [step for step in range(8) if probe.due(step)] == [0, 3, 6]
    probe.history.append((3, None))
    assert not probe.due(3) and probe.due(6)  # several batches may belong to one step


def test_arguments_are_checked_before_training():
    for options, message in (
        ({"every": 0}, "every: expected"),
        ({"max_seconds": 0}, "max_seconds: expected a number above 0, got 0"),
        ({"metrics": ("rank",)}, "metrics: expected some of"),
    ):
        with pytest.raises(ValueError, match=message):
            Probe({"input_ids": IDS}, **options)
    with pytest.raises(ValueError, match="batch: expected a dict of the model's inputs"):
        Probe({})


@pytest.mark.thorough
def test_wrappers_are_taken_off():
    model = nn.Linear(2, 2)
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(torch.compile(model)) is model
    assert unwrapped(torch.compile(nn.DataParallel(model))) is model


def test_a_model_that_is_spread_over_processes_is_refused():
    model = nn.Linear(2, 2)
    model.weight.ds_id = 0  # as DeepSpeed marks parameters that are elsewhere
    with pytest.raises(RuntimeError, match="model: its parameter 'weight' is spread over processes"):
        Probe({"input_ids": IDS}).measure(model, 0)


def test_modes_and_random_numbers_stay_as_they_are():
    model = tiny_llama().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    probe = Probe({"input_ids": IDS}, layers=[NAMES[1]], atol=(1e-3,), positions=[3, 6])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = probe.measure(model, 0)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == before
    assert sorted(found) == [
        f"ess/{NAMES[1]}/{name}"
        for name in ("entropy_mean", "entropy_of_cap", "tolerance_1e-03_mean", "tolerance_1e-03_of_cap", "unresolved")
    ]
    ((step, seen),) = probe.history
    assert step == 0 and seen.layers[NAMES[1]].positions.tolist() == [3, 6]
    assert found[f"ess/{NAMES[1]}/entropy_mean"] == pytest.approx(seen.average_ess())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_what_takes_too_long_is_refused_with_the_estimate(caplog):
    probe = Probe({"input_ids": IDS}, max_seconds=1e-9)
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ValueError, match=r"max_seconds: measuring takes an estimated .* s"),
    ):
        probe.measure(tiny_llama(), 0)
    assert probe.history == [] and NAMES[0] in caplog.text  # the plan, layer by layer


@pytest.mark.thorough
@pytest.mark.parametrize("attached", [True, False])
def test_trainer_of_transformers(tmp_path, attached):
    pytest.importorskip("accelerate")
    plain = trainer_of(tiny_llama(), tmp_path)
    plain.train()
    trainer = trainer_of(tiny_llama(), tmp_path)
    callback = analysis.ESSCallback({"input_ids": IDS}, every=2, atol=(1e-3,))
    if attached:
        assert callback.attach(trainer) is callback
    else:
        trainer.add_callback(callback)
    trainer.train()
    assert torch.equal(weights(plain.model), weights(trainer.model))
    assert [step for step, _ in callback.history] == [0, 2, 4]
    assert all(list(found.layers) == NAMES and not found.skipped for _, found in callback.history)
    name = f"ess/{NAMES[1]}/entropy_mean"
    logged = {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}
    assert list(logged) == [0, 2, 4] and len(set(logged.values())) == 3
    assert all(math.isfinite(value) for value in logged.values())
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [
        2,
        4,
    ]  # as without the callback
    last = callback.history[-1][1].layers[NAMES[1]].entropy
    assert logged[4] == pytest.approx(float(last.mean()))


@pytest.mark.thorough
def test_trainer_of_transformers_accumulates_gradients(tmp_path):
    pytest.importorskip("accelerate")
    trainer = trainer_of(tiny_llama(), tmp_path, gradient_accumulation_steps=2)
    callback = analysis.ESSCallback({"input_ids": IDS}, every=2, metrics=("entropy",), positions=[4]).attach(trainer)
    trainer.train()
    assert [step for step, _ in callback.history] == [0, 2, 4]


PROCESS = """
import json, sys
from ess_kernels import analysis
sys.path.insert(0, {tests!r})
from test_callbacks import IDS, NAMES, tiny_llama, trainer_of, weights

trainer = trainer_of(tiny_llama(), sys.argv[1])
callback = analysis.ESSCallback({{"input_ids": IDS}}, every=2, atol=(1e-3,)).attach(trainer)
if sys.argv[2] == "without":
    trainer.remove_callback(callback)
trainer.train()
logged = [entry["step"] for entry in trainer.state.log_history if f"ess/{{NAMES[0]}}/entropy_mean" in entry]
print(json.dumps({{
    "weights": weights(trainer.model).tolist(), "steps": [step for step, _ in callback.history], "logged": logged,
    "processes": trainer.args.world_size, "layers": [list(found.layers) for _, found in callback.history],
}}))
"""


def two_processes(folder, which):
    """What each of two processes that train together prints."""
    code = PROCESS.format(tests=str(Path(__file__).parent))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), which],
            stdout=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    return [json.loads(next(line for line in output.splitlines() if line.startswith('{"'))) for output in outputs]


@pytest.mark.slow
def test_process_zero_alone_measures_where_two_train(tmp_path):
    pytest.importorskip("accelerate")
    first, second = two_processes(tmp_path, "with")
    assert first["processes"] == 2
    assert first["steps"] == first["logged"] == [0, 2, 4] and second["steps"] == second["logged"] == []
    assert first["layers"] == [NAMES] * 3  # not "module.model...", as inside of DistributedDataParallel
    assert first["weights"] == second["weights"]
    assert [process["weights"] for process in two_processes(tmp_path, "without")] == [first["weights"]] * 2


def lightning_module():
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = tiny_llama()

        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def lightning_fit(folder, callbacks, **options):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    module = lightning_module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=4,
            accelerator="cpu",
            devices=1,
            logger=CSVLogger(folder, version=0),
            log_every_n_steps=2,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            **options,
        )
        trainer.fit(module, torch.utils.data.DataLoader(sentences(), batch_size=2))
    return module


@pytest.mark.thorough
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning(tmp_path, accumulate):
    plain = lightning_fit(tmp_path / "plain", [], accumulate_grad_batches=accumulate)
    callback = analysis.ESSLightningCallback({"input_ids": IDS}, model="model", every=2, atol=(1e-3,))
    module = lightning_fit(tmp_path / "measured", [callback], accumulate_grad_batches=accumulate)
    assert torch.equal(weights(plain), weights(module)) and module.training
    assert [step for step, _ in callback.history] == [0, 2, 4]
    (path,) = (tmp_path / "measured").rglob("metrics.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row[f"ess/{NAMES[0]}/entropy_mean"]]
    # Lightning counts the steps from 0 where it logs them
    assert [int(row["step"]) for row in rows] == [1, 3]
    for row, (_, found) in zip(rows, callback.history[1:]):
        expected = float(found.layers[NAMES[0]].entropy.mean())
        assert float(row[f"ess/{NAMES[0]}/entropy_mean"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.thorough
def test_lightning_says_when_its_loggers_would_see_nothing(tmp_path):
    lightning = pytest.importorskip("lightning")
    callback = analysis.ESSLightningCallback({"input_ids": IDS}, model="model", every=3, positions=[4])
    trainer = lightning.Trainer(logger=False, accelerator="cpu", barebones=True)
    assert trainer.loggers == []  # nobody to miss anything
    from lightning.pytorch.loggers import CSVLogger

    trainer = lightning.Trainer(logger=CSVLogger(tmp_path), log_every_n_steps=2, accelerator="cpu")
    with pytest.warns(UserWarning, match="every: expected a multiple of the Trainer's log_every_n_steps=2, got 3"):
        callback.on_train_start(trainer, lightning_module())
    assert len(callback.history) == 1
