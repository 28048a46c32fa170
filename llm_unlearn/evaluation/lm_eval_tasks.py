"""Tasks of lm-evaluation-harness on models as they lie in memory: full ones, adapters, adapters on a quantised base.

Needs the package `lm_eval`: the extra `[lm-eval]`. What its tasks say is what the harness itself says of the model;
ours are the sharing among processes, the model's precision, and that nothing of model or tokenizer is changed.
"""

import contextlib
import copy
import logging
import os
import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.evaluation_fields import LmEvalSection
from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.distributed.sharding import is_sharded
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.arithmetic import in_its_arithmetic
from llm_unlearn.evaluation.batches import evaluation_mode
from llm_unlearn.metrics.task_scores import TaskScores, task_scores
from llm_unlearn.models.devices import input_device
from llm_unlearn.tasks.probe import pads_left

if TYPE_CHECKING:
    from llm_unlearn.evaluation.text_evaluator import TextEvaluator

FIELD = "recipe.evaluate.lm_eval"
FEWSHOT_SEED = 1234  # of the examples before questions: the harness's own
DRAWS = 1000  # of the bootstrap behind a standard error that has no formula


def check_tasks(section: LmEvalSection) -> None:
    """Load the tasks with their data, before anything is trained.

    Raises:
        InputError: the harness is not installed; a task is unknown, its data cannot be had, or it runs code or shows
            pictures.
    """
    _tasks(section)


def lm_eval_version() -> str:
    """Of the installed harness, on which figures depend."""
    return str(_harness().__version__)


@cache
def _harness() -> Any:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each model that is not named by its id
    try:
        import lm_eval
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(
            f"{FIELD}: needs lm-evaluation-harness, which cannot be imported ({error}); install the extra: "
            "pip install 'llm_unlearn[lm-eval]'"
        ) from None
    return lm_eval


def _tasks(section: LmEvalSection) -> dict[str, Any]:
    """What the harness calls a task dictionary; its tasks are used again for every model."""
    return _loaded(section.folder, tuple(section.tasks), section.num_fewshot)


@cache
def _loaded(folder: str | None, names: tuple[str, ...], num_fewshot: int | None) -> dict[str, Any]:
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"{FIELD}.folder: {folder} is no folder")
    manager = _manager(folder, names)
    for name in names:
        _check_task(manager, name, folder)
    try:
        loaded = manager.load(list(names))
    except ValueError as error:
        raise InputError(f"{FIELD}.tasks: {error}; name each task once, by itself or by its group") from None
    for name, task in loaded["tasks"].items():
        for mark, what in (("UNSAFE_CODE", "runs code that models write"), ("MULTIMODAL", "shows pictures")):
            if getattr(task, mark, False):
                raise InputError(f"{FIELD}.tasks: {name} {what}, which is not done here; take it out")
        shots = task.get_config("num_fewshot")
        if num_fewshot is not None and shots != 0:  # a task that says 0 has no examples to give
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif shots is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


def _manager(folder: str | None, names: tuple[str, ...]) -> Any:
    """Finds tasks. The harness's own are looked through, for seconds, where the folder's are not enough."""
    if folder is None:
        return _index(None)
    alone = _harness().tasks.TaskManager(include_path=folder, include_defaults=False)
    try:
        alone.load(list(names))
    except KeyError:  # a name, or a part of a group, is not the folder's
        return _index(folder)
    except Exception:  # said by name later
        return alone
    return alone


@cache
def _index(folder: str | None) -> Any:
    return _harness().tasks.TaskManager(include_path=folder)


def _check_task(manager: Any, name: str, folder: str | None) -> None:
    if name not in manager.all_tasks:
        near = get_close_matches(name, manager.all_tasks, 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        where = f", nor does a readable file of {folder} define it" if folder else ""
        raise InputError(
            f"{FIELD}.tasks: '{name}' is no task of lm-evaluation-harness {lm_eval_version()}{where}{hint}"
        )
    try:
        manager.load([name])
    except Exception as error:  # of the hub, of a file, of the task's own code: whichever, the task cannot be asked
        raise InputError(
            f"{FIELD}.tasks: {name} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]}); "
            "its data comes from the hub the first time and from the cache after that: run this once with a network, "
            "define the task on local files (evaluate.lm_eval.folder), or take it out"
        ) from error


@in_its_arithmetic
def lm_eval_scores(
    evaluator: "TextEvaluator", model: Any, section: LmEvalSection, quiet: bool = True
) -> dict[str, TaskScores]:
    """What the harness says of a model. Common.

    Args:
        evaluator: of the run, with its tokenizer, precision and processes.
        model: a causal LM; it is left as it was.
        section: the tasks.
        quiet: no progress bars.

    Returns:
        task or group → its scores, in every process.
    """
    loaded, harness = _tasks(section), _harness()
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)  # anew, so that all models are shown the same
    size = section.batch_size or evaluator.batch_size
    with evaluation_mode(model), _kept_apart():
        found = harness.evaluate(
            _wrapper()(model, evaluator, size, quiet),
            loaded,
            limit=section.limit,
            bootstrap_iters=DRAWS,
            log_samples=False,
            apply_chat_template=section.chat_template,
        )
    return task_scores(evaluator.processes.from_main(found))


@contextlib.contextmanager
def _kept_apart() -> Iterator[None]:
    """What the harness prints goes to standard error; its bootstrap starts no processes beside a model."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@cache
def _wrapper() -> type:
    """The harness's model class, over a model in memory whose requests several processes share."""

    class InMemory(_harness().models.huggingface.HFLM):  # type: ignore[misc]  # known at run time alone
        def __init__(self, model: Any, evaluator: "TextEvaluator", batch_size: int, quiet: bool) -> None:
            tokenizer = copy.deepcopy(evaluator.tokenizer)  # it gets another padding
            super().__init__(
                pretrained=_Untied(model),
                backend="causal",
                tokenizer=tokenizer,
                add_bos_token=evaluator.encoding.add_bos,
                # its own autocast stands inside ours, and without this would switch that off
                mixed_precision_dtype="bfloat16" if evaluator.arithmetic.bf16 else None,
                batch_size=batch_size if pads_left(model, tokenizer.pad_token_id or 0) else 1,
            )
            self._device, self._quiet = input_device(model), quiet
            # of a sharded model all processes run the same requests, since it runs in all of them or in none
            self._processes: Processes = ALONE if is_sharded(model) else evaluator.processes

        def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list:
            return self._shared(super().loglikelihood, requests)

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list:
            return self._shared(super().loglikelihood_rolling, requests)

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list:
            return self._shared(super().generate_until, requests)

        def _shared(self, answer: Callable[..., list], requests: list) -> list:
            """Each process answers a run of neighbours, whose questions are alike, and gets all answers."""
            size = -(-len(requests) // self._processes.count)
            mine = requests[self._processes.rank * size :][:size]
            parts = self._processes.merged(answer(mine, disable_tqdm=self._quiet) if mine else [])
            return [found for part in parts for found in part]

    return InMemory


class _Untied:
    """A model that is no `Module` to the harness, which would tie the weights of one anew: an adapter's are its own."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self._model(*inputs, **named)
