"""Make a small base: a tokenizer and a model from a config, pre-trained on unlabelled text."""

from pathlib import Path
from typing import Any

from llm_unlearn.config.model_sections import PretrainSection
from llm_unlearn.config.recipe import Recipe
from llm_unlearn.config.sections import TrainSection
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.files import file_stamps, fingerprint, write_json

BASE_SEED = 0  # one base for all seeds of a recipe: seeds differ in data, poison and training


def base_folder(recipe: Recipe) -> Path:
    """The folder of a recipe's base, named by the hash of its inputs so that recipes can share it."""
    root = Path(_section(recipe).cache_dir or recipe.output_dir) / "base"
    return root / fingerprint(base_inputs(recipe))[:12] / "model"


def base_of_run(recipe: Recipe, root: Path) -> str | None:
    """The base of a run, also if its directory `root` was moved; None if the base that was made for it is gone."""
    if recipe.model.path is not None:
        return recipe.model.path
    made = base_folder(recipe)
    folders = (made, root / Path(*made.parts[-3:]))
    return next((str(folder) for folder in folders if (folder / "config.json").is_file()), None)


def pretrain_base(recipe: Recipe, folder: Path, work_dir: Path, quiet: bool) -> None:
    """Make the base of a recipe; all processes call this, the main one writes.

    Args:
        recipe: its `pretrain`, `model` and `data` sections are read.
        folder: replaced by the model and its tokenizer.
        work_dir: for the tokenizer and checkpoints during the training.
        quiet: no progress bar.
    """
    from llm_unlearn.data.encoding import encode_text
    from llm_unlearn.data.sources import load_unlabelled
    from llm_unlearn.distributed.sharding import is_sharded, whole_state_dict
    from llm_unlearn.models.load import load_tokenizer
    from llm_unlearn.models.make import make_model, train_tokenizer
    from llm_unlearn.models.save import save_model
    from llm_unlearn.training.text_training import Training

    section, processes = _section(recipe), Processes.current()
    texts = load_unlabelled(recipe.data, section.texts, BASE_SEED)
    if processes.is_main and not (work_dir / "tokenizer" / "tokenizer.json").is_file():
        train_tokenizer(texts["text"], recipe.model.vocab_size).save_pretrained(work_dir / "tokenizer")
    processes.wait()
    tokenizer = load_tokenizer(str(work_dir / "tokenizer"), recipe.model.changed(path=None))
    model = make_model(recipe.model.architecture or {}, tokenizer, BASE_SEED)
    training = Training(_settings(section), work_dir, BASE_SEED, quiet, "base")
    model, cost = training.fit(model, encode_text(texts, tokenizer, section.max_length), tokenizer)
    weights = whole_state_dict(model, keep=processes.is_main) if is_sharded(model) else None
    if processes.is_main:
        save_model(model, tokenizer, folder, weights)
        write_json(folder / "cost.json", cost)
        write_json(folder / "made_from.json", base_inputs(recipe))
    training.release()


def base_inputs(recipe: Recipe) -> list[Any]:
    """Everything that the base of a recipe depends on, JSON-able."""
    data, settings = recipe.data, _section(recipe).model_dump()
    del settings["cache_dir"]
    sources = [data.source, data.config_name, data.unlabelled_split, data.unlabelled_files, data.text_column]
    stamps = file_stamps(data.unlabelled_files or [data.source])
    return [recipe.model.architecture, recipe.model.vocab_size, settings, [*sources, stamps]]


def _section(recipe: Recipe) -> PretrainSection:
    """The `pretrain` section, which a recipe has if its model has no path."""
    assert recipe.pretrain is not None
    return recipe.pretrain


def _settings(section: PretrainSection) -> TrainSection:
    """Pre-training as settings of a training."""
    shared = {name: getattr(section, name) for name in ("epochs", "learning_rate", "batch_size")}
    return TrainSection(**shared, lr_scheduler_type="cosine", weight_decay=0.01)
