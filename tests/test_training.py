"""Small models learn, are measured on the way, and can be trained again."""

import pytest
import torch

from ess_kernels.analysis.featurizers import FEATURIZERS
from ess_kernels.analysis.tasks import MQAR, SelectiveCopying
from ess_kernels.analysis.training import Schedule, TaskModel, loss_and_accuracy, train

TASK = MQAR(8, 2, 12, asks=2)


def small_model(*kinds, seed=0, **settings):
    torch.manual_seed(seed)
    return TaskModel(kinds, TASK.vocab, 16, 2, smeared=True, **settings)


def test_it_learns_to_recall():
    found = train(small_model("GLA"), TASK, Schedule(steps=120, checkpoints=3))
    assert [c.step for c in found] == [0, 40, 80, 120]
    assert found[0].accuracy < 0.5 and found[-1].accuracy > 0.9
    assert found[-1].loss < found[0].loss
    assert all(len(c.entropy) == len(c.tolerance) == 1 and 0 < c.entropy[0] <= 8 for c in found)
    assert set(found[0].to_dict()) == {"step", "loss", "accuracy", "entropy", "tolerance"}


def test_the_same_seeds_give_the_same_run():
    schedule = Schedule(steps=4, checkpoints=2)
    first, again = (train(small_model("WLA", "SA"), TASK, schedule, seed=3) for _ in range(2))
    other = train(small_model("WLA", "SA"), TASK, schedule, seed=4)
    assert first == again != other
    assert first[0] == other[0]  # the same weights, measured on the same sequences


def test_settings_reach_the_kinds_that_have_them():
    model = small_model(*FEATURIZERS, beta=2.0, alpha=5.0, step_bias="zero", state=6)
    mixers = {block.mixer.__class__.__name__: block.mixer for block in model.blocks}
    assert mixers["GLA"].beta == mixers["WLA"].beta == 2.0 and mixers["GLAS6"].alpha == 5.0
    assert {op.state_size for op in model.operators(TASK.draw(1, torch.Generator()).tokens)[:3]} == {6}


def test_operators_are_those_of_the_forward_pass():
    model = small_model("GLA", "SA")
    tokens = TASK.draw(2, torch.Generator().manual_seed(0)).tokens
    seen = []
    for block in model.blocks:
        block.mixer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(tokens)
    shown = [x for _, x in model.mixer_inputs(tokens)]
    assert all(torch.equal(a, b) for a, b in zip(seen, shown))


def test_a_penalty_is_added_to_the_loss():
    schedule = Schedule(steps=40, checkpoints=1, warm_up=5)
    plain, small = small_model("WLA"), small_model("WLA")
    train(plain, TASK, schedule)
    train(small, TASK, schedule, penalty=lambda model, tokens: 100 * model.output.weight.square().sum())
    assert float(small.output.weight.detach().norm()) < 0.9 * float(plain.output.weight.detach().norm())


def test_accuracy_counts_what_is_asked():
    task = SelectiveCopying(10, 3, 8)
    batch = task.draw(5, torch.Generator().manual_seed(0))

    class Knows(torch.nn.Module):
        def forward(self, tokens):
            return torch.nn.functional.one_hot(batch.targets.clamp_min(0), 8) * 50.0

    loss, accuracy = loss_and_accuracy(Knows(), batch)
    assert float(accuracy) == 1 and float(loss) < 1e-6


def test_rates():
    schedule = Schedule(steps=300, rate=1.0, warm_up=30)
    assert schedule.rate_at(0) == pytest.approx(1 / 30)
    assert schedule.rate_at(300) == pytest.approx(0.1)


def test_bad_settings():
    with pytest.raises(ValueError, match="checkpoints: expected a divisor of steps=10, got 3"):
        Schedule(steps=10, checkpoints=3)
    with pytest.raises(ValueError, match=r"kinds: expected names among LA, .*, got 'RNN'"):
        small_model("RNN")
