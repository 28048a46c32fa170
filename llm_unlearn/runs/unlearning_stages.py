"""The stages of `unlearn`: every method at every budget."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.files import write_json
from llm_unlearn.runs.stages import Stage

if TYPE_CHECKING:
    from llm_unlearn.runs.seed_run import SeedRun


def unlearn_stages(run: "SeedRun", before: dict[str, Stage]) -> list[Stage]:
    """One stage for each method and budget."""
    from llm_unlearn.runs.method_configs import settings

    apart = ("methods", "budgets", "report_to", "preset")  # who listens changes no model; a preset is in the settings
    common = {k: v for k, v in run.recipe.unlearn.model_dump().items() if k not in apart}
    return [
        Stage(
            f"unlearned/{name}",
            [
                before["poisoned"].key,
                run.rows_key(before),
                method,
                run.recipe.unlearn.methods[method] or {},
                settings(run.recipe, method),
                budget,
                common,
                run.seed,
            ],
            [run.folder / "unlearned" / name / "cost.json"],
            partial(_unlearn, run, name, method, budget),
            common=True,
        )
        for name, method, budget in run.variants()
    ]


def _unlearn(run: "SeedRun", name: str, method: str, budget: float, work_dir: Path) -> None:
    from llm_unlearn.distributed.sharding import release
    from llm_unlearn.runs.method_configs import method_config
    from llm_unlearn.trainers import METHODS
    from llm_unlearn.training.fine_tuning import train_resumably
    from llm_unlearn.training.progress import show_progress
    from llm_unlearn.training.stopwatch import Stopwatch

    model, arguments = run.unlearning()
    forget, retain = run.forget_and_retain()
    config = method_config(
        run.recipe,
        method,
        run.seed,
        str(work_dir),
        max_flops=None,
        quiet=run.quiet,
        cache_dir=str(run.folder / ".reference_log_probs"),
        limits=run.limits(budget),
    )
    callback = run.evaluator.quick_figures if run.recipe.unlearn.eval_steps else None
    cls = METHODS[method][1]
    if cls.starts_clean:
        step = vars(config).get("from_step")
        arguments["start_model"] = run.early_model(step) if step else run.clean_start()
    watch = Stopwatch()
    trainer = cls(
        model=model, args=config, forget_dataset=forget, retain_dataset=retain, evaluate_callback=callback, **arguments
    )
    del model  # rewind trains another one
    show_progress(trainer, name, run.quiet)
    train_resumably(trainer, work_dir, run.folder / "logs" / name)
    cost = {**trainer.cost, **watch.read(trainer.args.device.type)}
    run.save(trainer.accelerator.unwrap_model(trainer.model), f"unlearned/{name}", cost)
    if run.processes.is_main:
        write_json(run.folder / "unlearned" / name / "log.json", trainer.state.log_history)
    if run.trainers is None:
        release(trainer)
    else:
        run.trainers[name] = trainer
