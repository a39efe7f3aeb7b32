"""ESS during training with the Trainer of transformers. Needs transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ess_kernels.analysis.callbacks.probe import Probe


class ESSCallback(Probe, TrainerCallback):
    """Measures the ESS of the model on one fixed batch, before training and every N steps, and logs scalars.

    Arguments and attributes are those of `Probe`. Process zero alone measures; the others wait for it at the next step.
    The scalars are those of `ess_kernels.analysis.scalars.scalars`, for instance
    `ess/model.layers.0.self_attn/entropy_mean`. With `attach` they go where the Trainer's own logs go. A callback that
    is merely passed to the Trainer adds them to `trainer.state.log_history`: callbacks do not get to see the Trainer.

    Example:
        >>> callback = ESSCallback({"input_ids": ids}, every=500).attach(trainer)
        >>> trainer.train()
        >>> step, analysis = callback.history[-1]
    """

    trainer: Any = None

    def attach(self, trainer: Any) -> ESSCallback:
        """Add this callback to a Trainer, and log with it. Returns the callback."""
        trainer.add_callback(self)
        self.trainer = trainer
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(state, control, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(state, control, kwargs["model"])

    def _measure(self, state: Any, control: Any, model: Any) -> None:
        if not state.is_world_process_zero or not self.due(state.global_step):
            return
        found = self.measure(model, state.global_step)
        if self.trainer is not None:
            due = (
                control.should_log
            )  # whether the Trainer's own log of this step is to come: logging anything resets it
            self.trainer.log(found)
            control.should_log = due
        else:
            state.log_history.append({**found, "step": state.global_step})
