"""One progress bar per training run with the loss beside it, in place of the Trainer's log lines."""

from typing import Any

from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback


class LossBar(ProgressCallback):
    """The Trainer's bar with a description and the latest loss; an evaluation prints a line above it."""

    def __init__(self, description: str) -> None:
        super().__init__()
        self.description = description

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Name the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.description)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the loss beside the bar, or the figures of an evaluation above it."""
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix({"loss": f"{float(logs['loss']):.3g}"})
        figures = {name: value for name, value in logs.items() if name.startswith("eval_")}
        if figures:  # the user asked for these, so they stay on the screen
            listed = ", ".join(f"{name.removeprefix('eval_')} {float(value):.3g}" for name, value in figures.items())
            self.training_bar.write(f"step {state.global_step}: {listed}")


def show_progress(trainer: Trainer, description: str, quiet: bool) -> None:
    """Give a trainer a bar with a description; if quiet, none."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not quiet:
        trainer.add_callback(LossBar(description))
