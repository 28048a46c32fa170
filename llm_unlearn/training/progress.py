"""One progress bar per training run, with the loss beside it, in the place of the Trainer's lines of log."""

from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback


class LossBar(ProgressCallback):
    """The Trainer's bar with a description; a logged loss moves the figure beside it, an evaluation prints a line."""

    def __init__(self, description: str) -> None:
        super().__init__()
        self.description = description

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.description)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix({"loss": f"{float(logs['loss']):.3g}"})
        figures = {name: value for name, value in logs.items() if name.startswith("eval_")}
        if figures:  # these are asked for, so they stay on the screen
            listed = ", ".join(f"{name.removeprefix('eval_')} {float(value):.3g}" for name, value in figures.items())
            self.training_bar.write(f"step {state.global_step}: {listed}")


def show_progress(trainer: Trainer, description: str, quiet: bool) -> None:
    """Give a trainer a described bar, or (quiet) nothing at all."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not quiet:
        trainer.add_callback(LossBar(description))
