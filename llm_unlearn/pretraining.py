"""A small base made on the spot: a tokenizer and a model from a config, pre-trained on unlabelled text."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llm_unlearn.processes import Processes
from llm_unlearn.recipe import Recipe
from llm_unlearn.sections import TrainSection
from llm_unlearn.stages import Stage, Stages, file_stamps, fingerprint, write_json

BASE_SEED = 0  # one base for all seeds of a recipe: seeds differ in data, poison and training


def base_folder(recipe: Recipe) -> Path:
    """Where the base of a recipe lies: under the hash of what it depends on, so that recipes can share it."""
    root = Path(recipe.pretrain.cache_dir or recipe.output_dir) / "base"
    return root / fingerprint(_inputs(recipe))[:12] / "model"


def base_of_run(recipe: Recipe, root: Path) -> str | None:
    """The base of a run: what its recipe names, or what was made for it, also where the run directory `root` was moved
    since; None where that is not there."""
    if recipe.model.path is not None:
        return recipe.model.path
    made = base_folder(recipe)
    places = (made, root / Path(*made.parts[-3:]))
    return next((str(place) for place in places if (place / "config.json").is_file()), None)


def make_base(recipe: Recipe, say: Callable[[str], None], quiet: bool) -> Path:
    """Make the base of a recipe, or find it made before; it stays in `pretrain.cache_dir` or the run directory."""
    section, data, folder, processes = recipe.pretrain, recipe.data, base_folder(recipe), Processes.current()

    def work(work_dir: Path) -> None:
        from llm_unlearn.data.encoding import encode_text
        from llm_unlearn.data.sources import load_unlabelled
        from llm_unlearn.modeling import load_tokenizer, make_model, save_model, train_tokenizer
        from llm_unlearn.trainers.sharding import is_sharded, whole_state_dict
        from llm_unlearn.training import Training

        texts = load_unlabelled(data, section.texts, BASE_SEED)
        if processes.is_main and not (work_dir / "tokenizer" / "tokenizer.json").is_file():
            train_tokenizer(texts["text"], recipe.model.vocab_size).save_pretrained(work_dir / "tokenizer")
        processes.wait()
        tokenizer = load_tokenizer(str(work_dir / "tokenizer"), replace(recipe.model, path=None))
        model = make_model(recipe.model.architecture, tokenizer, BASE_SEED)
        training = Training(_settings(recipe), work_dir, BASE_SEED, quiet, "base")
        model, cost = training.fit(model, encode_text(texts, tokenizer, section.max_length), tokenizer)
        weights = whole_state_dict(model, keep=processes.is_main) if is_sharded(model) else None
        if processes.is_main:
            save_model(model, tokenizer, folder, weights)
            write_json(folder / "cost.json", cost)
            write_json(folder / "made_from.json", _inputs(recipe))
        training.release()

    stage = Stage("base", _inputs(recipe), [folder / "cost.json"], work, common=True)
    Stages(folder.parent, say, processes).run(stage)
    return folder


def _inputs(recipe: Recipe) -> list[Any]:
    data, settings = recipe.data, asdict(recipe.pretrain)
    del settings["cache_dir"]
    sources = [
        data.source,
        data.config_name,
        data.unlabelled_split,
        data.unlabelled_files,
        data.text_column,
        file_stamps(data.unlabelled_files or []),
    ]
    return [recipe.model.architecture, recipe.model.vocab_size, settings, sources]


def _settings(recipe: Recipe) -> TrainSection:
    section = recipe.pretrain
    return TrainSection(
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
    )
