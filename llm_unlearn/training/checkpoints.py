"""Find the newest complete checkpoint, and resume it exactly or not at all."""

import contextlib
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from llm_unlearn.distributed.sharding import average_gradients, is_sharded, put_away, set_precision
from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json
from llm_unlearn.models.checkpoint_files import check_safetensors, is_out_of_memory
from llm_unlearn.models.strict_loading import check_adapter, load_pretrained
from llm_unlearn.training.precision import keep_float32

logger = logging.getLogger(__name__)

METHOD_STATE = "method_state.safetensors"  # what an unlearning method keeps beside the weights (trainers/)
_STATE, _REMEDY = "trainer_state.json", "resume another checkpoint, or train from the start"


def last_checkpoint(folder: Path) -> str | None:
    """Path of the newest `checkpoint-<step>` in a folder from which a Trainer can resume, or None.

    The Trainer writes `trainer_state.json` last, so a readable one marks a complete checkpoint. The other files are
    checked as well, since a crash of the machine can lose them.
    """
    suffixes = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")}
    steps = {int(suffix): path for path, suffix in suffixes.items() if suffix.isdigit()}
    for step in sorted(steps, reverse=True):
        try:
            check_complete(steps[step])
            return str(steps[step])
        except InputError as error:
            logger.warning("%s is passed over: %s", steps[step], error)
    return None


def check_complete(checkpoint: Path) -> None:
    """Raise InputError, naming it, if a file of a checkpoint is missing or cannot be read."""
    state = read_json(checkpoint / _STATE, _REMEDY)
    try:
        TrainerState(**state)
    except TypeError as error:  # a field of another version
        raise InputError(f"{checkpoint / _STATE}: {error}; {_REMEDY}") from None
    if not isinstance(state.get("global_step"), int):
        raise InputError(f"{checkpoint / _STATE}: does not say its step (global_step); {_REMEDY}")
    tensors = list(checkpoint.rglob("*.safetensors"))
    for file in tensors:
        check_safetensors(file, _REMEDY)
    weights = [file for file in tensors if file.name != METHOD_STATE]
    # torch writes zip files, which end with their directory
    states = [file for kind in ("*.pt", "*.pth", "*.bin") for file in checkpoint.rglob(kind)]
    engine, processes = _written_by(checkpoint)
    optimizer = {"plain": ["optimizer.pt"], "FSDP": ["optimizer.bin", "pytorch_model_fsdp.bin"], "DeepSpeed": []}
    states += [checkpoint / name for name in optimizer[engine]]
    if engine == "DeepSpeed":  # it reads the weights from its own shards
        weights = list(checkpoint.glob("global_step*/*_model_states.pt"))
        if processes != len(list(checkpoint.glob("rng_state*.pth"))):
            raise InputError(f"{checkpoint}: lacks the random state of one of {processes} processes; {_REMEDY}")
    if not weights:
        raise InputError(f"{checkpoint}: has no weights in safetensors; {_REMEDY}")
    for file in states:
        if file.name != "training_args.bin" and not zipfile.is_zipfile(file):
            raise InputError(f"{file}: {'damaged' if file.is_file() else 'no such file'}; {_REMEDY}")


def _written_by(checkpoint: Path) -> tuple[str, int | None]:
    """The engine that wrote a checkpoint, and the number of optimizer shards if it is DeepSpeed."""
    shards = list(checkpoint.glob("global_step*/*_optim_states.pt"))
    if shards or list(checkpoint.glob("global_step*")):
        return "DeepSpeed", len(shards)
    fsdp = (checkpoint / "optimizer.bin").is_file() or (checkpoint / "pytorch_model_fsdp.bin").is_file()
    return ("FSDP" if fsdp else "plain"), None


class ExactResume(Trainer):
    """A Trainer that resumes a checkpoint exactly, or refuses it, and keeps float32 weights; the base of all of ours.

    transformers' own leaves the weights as they are whose names it does not find, with a warning. So it resumes a
    mixture of experts, whose weights are saved under other names than they have in memory, from its first weights.
    """

    model: Any

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        keep_float32(self.model, self.accelerator)
        if self.accelerator.is_fsdp2 and is_sharded(self.model):  # as it was loaded
            plugin = self.accelerator.state.fsdp_plugin
            plugin.auto_wrap_policy = None  # accelerate would look for blocks, whose class has another name by now
            set_precision(self.model, plugin.mixed_precision_policy)
            average_gradients(self.model)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As Trainer.train.

        Raises:
            InputError: the checkpoint is missing or damaged, or this launch cannot resume it.
        """
        if resume_from_checkpoint:
            folder = str(self.args.output_dir)
            if resume_from_checkpoint is True:
                resume_from_checkpoint = get_last_checkpoint(folder)
            if resume_from_checkpoint is None or not Path(resume_from_checkpoint).is_dir():
                raise InputError(f"resume_from_checkpoint: no checkpoint in {resume_from_checkpoint or folder}")
            check_complete(Path(resume_from_checkpoint))
            check_resumable(resume_from_checkpoint, self.accelerator)
        put_away(self.model)  # or the optimizer would be given the gathered weights of a forward before
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _explained(resume_from_checkpoint):
            own = self.accelerator.unwrap_model(self.model)
            if self.is_fsdp_enabled or not hasattr(own, "save_pretrained"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            elif hasattr(own, "peft_config"):
                _check_adapter_of(own, Path(resume_from_checkpoint))
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                # by the names under which transformers saved them; float32 holds every narrower type exactly
                saved = load_pretrained(type(own), resume_from_checkpoint, use_safetensors=True, dtype=torch.float32)
                own.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _explained(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _explained(checkpoint):
            super()._load_rng_state(checkpoint)


def _check_adapter_of(model: Any, checkpoint: Path) -> None:
    """Raise InputError if a checkpoint does not hold exactly the weights of a model's active adapter."""
    from peft.utils import load_peft_weights

    name = model.active_adapter
    folder = checkpoint if name == "default" else checkpoint / name
    check_adapter(model, folder, load_peft_weights(str(folder), device="cpu"), name)


@contextlib.contextmanager
def _explained(checkpoint: str | None) -> Iterator[None]:
    """Turn what torch raises over a file that is not of this training into InputError."""
    try:
        yield
    except Exception as error:
        if checkpoint is None or isinstance(error, InputError) or is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError(f"{checkpoint}: cannot be resumed ({reason}); {_REMEDY}") from error


def check_resumable(checkpoint: Any, accelerator: Any) -> None:
    """Raise unless this launch can resume a checkpoint; it would otherwise train on without the optimizer's state.

    Args:
        checkpoint: path of the checkpoint.
        accelerator: of the Trainer that is to resume.

    Raises:
        InputError: another engine wrote the checkpoint, or DeepSpeed did with another number of processes.
    """
    from accelerate.utils import DistributedType

    engine, processes = _written_by(Path(checkpoint))
    current = "FSDP" if accelerator.is_fsdp2 else "plain"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        current = "DeepSpeed"
    remedy = f"launch as before, or remove {Path(checkpoint).parent} to train this model from the start"
    if engine != current:
        names = {"plain": "without a sharding engine", "FSDP": "under FSDP", "DeepSpeed": "under DeepSpeed"}
        raise InputError(f"{checkpoint}: was written {names[engine]}, and this launch is {names[current]}; {remedy}")
    if processes is not None and processes != accelerator.num_processes:
        raise InputError(
            f"{checkpoint}: DeepSpeed stored the optimizer's state for {processes} processes and can only give it back "
            f"to {processes}; this launch has {accelerator.num_processes}; {remedy}"
        )
