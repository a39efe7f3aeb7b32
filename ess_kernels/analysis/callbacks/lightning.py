"""ESS during training with Lightning. Needs the package `lightning`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback

from ess_kernels.analysis.callbacks.probe import Probe


class ESSLightningCallback(Probe, Callback):
    """Measures the ESS of a module on one fixed batch, before training and every N steps, and logs scalars.

    Process zero alone measures; the others wait for it at the next step. Scalars are logged with the module's
    `log_dict`, and Lightning numbers the steps. It passes on to its loggers what is logged at every
    `log_every_n_steps`-th step only: `every` should be a multiple of that. What was measured before training is in
    `history` and is not logged, because Lightning logs nothing then.

    Args:
        batch: the inputs of the module, for instance `{"input_ids": ids}`; they are moved to its device.
        model: the name of the module inside of the LightningModule that takes these inputs, for instance `"model"`;
            None: the LightningModule itself.
        options: the other arguments of `Probe`, whose attributes are there as well.
    """

    def __init__(self, batch: Mapping[str, Any], *, model: str | None = None, **options: Any) -> None:
        super().__init__(batch, **options)
        self.model = model

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.loggers and trainer.log_every_n_steps and self.every % trainer.log_every_n_steps:
            warnings.warn(
                f"every: expected a multiple of the Trainer's log_every_n_steps={trainer.log_every_n_steps}, got "
                f"{self.every}: what is measured at other steps does not reach the loggers",
                stacklevel=2,
            )
        self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if found := self._measure(trainer, pl_module):
            pl_module.log_dict(found, on_step=True, on_epoch=False, rank_zero_only=True)

    def _measure(self, trainer: Any, pl_module: Any) -> dict[str, float]:
        step = trainer.global_step
        if not trainer.is_global_zero or not self.due(step):
            return {}
        return self.measure(pl_module if self.model is None else pl_module.get_submodule(self.model), step)
