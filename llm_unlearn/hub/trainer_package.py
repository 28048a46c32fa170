"""`trainer.push_to_hub()`: the unlearned model or adapter, its tokenizer, and a card that says that nobody audited it.

The Trainer's own would upload the output directory: checkpoints with their optimizer, a pickle of the arguments, a
frozen reference. `llm-unlearn push` publishes a model of a run with its audit.
"""

import json
import logging
import shutil
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.hub.client_errors import explained
from llm_unlearn.hub.package import CARD, Package, model_files, on_base, tokenizer_files
from llm_unlearn.hub.upload import describe, push
from llm_unlearn.tasks.causal_lm import CausalLMTask

if TYPE_CHECKING:
    from llm_unlearn.trainers.base import UnlearnTrainer

logger = logging.getLogger(__name__)

FOLDER = "_push"  # in the output directory, while it lasts; with a number where somebody has that name


def push_trainer(
    trainer: "UnlearnTrainer",
    message: str,
    token: str | None,
    revision: str | None,
    private: bool | None,
    base: str | None,
) -> str | None:
    """Publish a trainer's model as it is. All processes call it; the first one uploads.

    Args:
        trainer: its model is published, with a card that says that nobody audited it.
        message: of the commit.
        token: None is `args.hub_token`, or the one that is logged in.
        revision: None is `args.hub_revision`.
        private: None is `args.hub_private_repo`, and private where that is not given.
        base: the hub id of what an adapter sits on, where it was loaded from a folder.

    Returns:
        the address of the commit; None on the other processes.

    Raises:
        InputError: see `upload.push`; or the base is a folder, which nobody else has.
    """
    from huggingface_hub import HfApi

    from llm_unlearn.hub.unaudited_card import compose_unaudited_card

    args, output_dir = trainer.args, Path(trainer.args.output_dir or ".")
    folder = next(path for i in count() if not (path := output_dir / f"{FOLDER}{i or ''}").exists())
    trainer.accelerator.wait_for_everyone()  # before the first of them makes it
    try:
        trainer.save_model(str(folder), _internal_call=True)  # each process gives its part of a sharded model
        if not trainer.is_world_process_zero():
            return None
        # an adapter that is not called "default" lies one folder down
        home = next((path.parent for path in folder.glob("*/adapter_config.json")), folder)
        files, adapter = model_files(home) | tokenizer_files(folder), None
        if "adapter_config.json" in files:
            config = on_base(files["adapter_config.json"], base)
            files["adapter_config.json"], adapter = config, json.loads(config)["base_model_name_or_path"]
        api = HfApi(token=token or args.hub_token)
        repo = args.hub_model_id or output_dir.resolve().name
        if "/" not in repo:
            with explained(api, repo):
                repo = f"{api.whoami()['name']}/{repo}"
        card = compose_unaudited_card(
            trainer.method,
            _loading(trainer, repo, adapter),
            repo,
            adapter,
            "text-generation" if isinstance(trainer.task, CausalLMTask) else "image-classification",
            {name: len(rows) for name, rows in trainer.rows.items()},
            trainer.cost,
            args.to_dict(),
        )
        package = Package({CARD: card.encode(), **files})
        private = args.hub_private_repo is not False if private is None else private
        revision = revision or args.hub_revision
        logger.info(describe(package, repo, private, revision))
        return push(package, repo, api=api, message=message, revision=revision, private=private)
    finally:
        if trainer.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)


def _loading(trainer: "UnlearnTrainer", repo: str, base: str | None) -> str:
    """The code that loads what is published, an adapter's base as it was here: its dtype and its bits."""
    from llm_unlearn.hub.loading_code import loading_code

    model = trainer.accelerator.unwrap_model(trainer.model)
    bits = {"is_loaded_in_4bit": "4bit", "is_loaded_in_8bit": "8bit"}
    quantization = next((value for name, value in bits.items() if getattr(model, name, False)), "none")
    dtype = str(getattr(model.config, "dtype", None) or "torch.float32").removeprefix("torch.")
    return loading_code(
        repo, base, dtype=dtype, quantization=quantization, images=not isinstance(trainer.task, CausalLMTask)
    )
