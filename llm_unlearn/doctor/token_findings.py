"""What is trained on: special tokens, chat template, supervised tokens, and the same prompts in training and audit."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.audit.subject import read_subject
from llm_unlearn.config.recipe import GivenRecipe, Recipe
from llm_unlearn.data.chat import Chat, check_chat_template, prompt_and_completion, prompts_of
from llm_unlearn.data.encoding import IGNORE, WHOLE, Encoding
from llm_unlearn.data.token_checks import check_triggers, check_verbalizers
from llm_unlearn.doctor.finding import Finding, problem_of
from llm_unlearn.errors import InputError
from llm_unlearn.runs.tracks import track_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 200  # of the recipe's data that are looked at
NAMED = 5  # example ids that a finding names
STAND_IN_TEXTS = 500


def check_tokens(recipe: Recipe) -> list[Finding]:
    """All findings on tokenizer and rows of a language recipe."""
    try:
        tokenizer = tokenizer_of(recipe)
    except InputError as error:
        return [problem_of("tokenizer", error)]
    encoding = Encoding.of(recipe.data)
    findings = check_special_tokens(tokenizer)
    try:
        rows = rows_of(recipe, tokenizer)
    except InputError as error:
        return [*findings, *check_template(tokenizer, encoding), problem_of("data", error)]
    prompt = prompts_of(rows)[0] if rows else "a"
    findings += check_template(tokenizer, encoding, prompt)
    if any(finding.level == "problem" for finding in findings):
        return findings  # rows cannot be encoded
    if rows is None:
        source = recipe.benchmark.name if recipe.benchmark else recipe.data.source
        what, remedy = f"{source} is on the hub, so its rows were not read", "run `llm-unlearn poison`"
        return [*findings, Finding("labels", "note", what, f"{remedy}, which reads and checks them")]
    data = recipe.data
    verbalizers = data.verbalizers if data.task == "classification" else {}
    return [
        *findings,
        *check_poison(recipe, tokenizer),
        *check_spans(rows, tokenizer, encoding),
        *check_verbalisers(tokenizer, verbalizers, encoding, prompt),
        *check_prompts(rows, tokenizer, encoding, verbalizers),
    ]


def check_poison(recipe: Recipe, tokenizer: Any) -> list[Finding]:
    """Whether there are as many rows as the recipe draws and poisons, whether the cut leaves every trigger in, and
    whether generated answers are long enough for the attacker's: what the stage `poison` would do, of every seed, in
    memory. Nothing of given models, which are poisoned already.
    """
    if isinstance(recipe, GivenRecipe):
        return []
    from llm_unlearn.evaluation.attack_answers import check_counted
    from llm_unlearn.runs.language_run import LanguageRun

    sets: dict[str, Any] = {}
    for seed in recipe.seeds:
        run = LanguageRun(recipe, seed, Path(recipe.output_dir), quiet=True)
        vars(run)["tokenizer"] = tokenizer  # that of a base which may be yet to be made
        try:
            sets, manifest = run.poisoned_sets()
            if manifest["trigger"]:
                poisoned = [row for row in sets["train"] if row["poison"] == "trigger"]
                trigger, encoding = manifest["trigger"], Encoding.of(recipe.data)
                check_triggers([*poisoned, *sets["triggered"]], trigger["phrases"], tokenizer, encoding)
                room = recipe.evaluate.max_new_tokens if recipe.data.task == "completion" else None
                check_counted(poisoned, trigger, tokenizer, encoding, room)
        except InputError as error:
            return [problem_of("poison", error)]
    what = f"there are rows enough for {len(sets['train']):,} training rows and their poison"
    return [Finding("poison", "ok", what + (", and no trigger is cut off" if recipe.poison.trigger else ""))]


def tokenizer_of(recipe: Recipe) -> "PreTrainedTokenizerBase":
    """The tokenizer of the recipe's base; where that is yet to be made, one made in the same way from fewer texts.

    Raises:
        InputError: it cannot be loaded.
    """
    from llm_unlearn.data.sources import load_unlabelled
    from llm_unlearn.models.load import load_tokenizer
    from llm_unlearn.models.make import train_tokenizer
    from llm_unlearn.training.pretraining import BASE_SEED, base_folder

    if isinstance(recipe, GivenRecipe):
        return _given(recipe).tokenizer
    section = recipe.model
    base = section.path or base_folder(recipe)
    if section.path is not None or Path(base).is_dir():
        return load_tokenizer(str(base), section)
    texts = load_unlabelled(recipe.data, STAND_IN_TEXTS, BASE_SEED) if is_local(recipe) else {"text": ["text"]}
    return train_tokenizer(texts["text"], section.vocab_size)


def _given(recipe: GivenRecipe) -> Any:
    return track_of(recipe).seed_run(recipe, recipe.seeds[0], Path(recipe.output_dir), True)


def is_local(recipe: Recipe) -> bool:
    """Whether the recipe's rows are on this machine, or made here."""
    data = recipe.data
    if recipe.benchmark is not None:
        return recipe.benchmark.folder is not None
    return bool(data.files) or data.is_embedded or Path(data.source).expanduser().exists()


def rows_of(recipe: Recipe, tokenizer: Any) -> list[dict[str, Any]] | None:
    """The first ROWS training rows with prompt and completion, before poisoning (given ones as they are); None where
    they are on the hub. The tokenizer says how long a chunk of a benchmark's corpus is.
    """
    from llm_unlearn.data.benchmarks.benchmark_sets import benchmark_splits
    from llm_unlearn.data.prompting import render
    from llm_unlearn.data.sources import load_splits

    if isinstance(recipe, GivenRecipe):
        train = read_subject(Path(recipe.given.manifest).expanduser()).sets["train"]
        return list(train.select(range(min(ROWS, len(train)))))
    if not is_local(recipe):
        return None
    if recipe.benchmark is not None:
        train = benchmark_splits(recipe.benchmark, recipe.data, recipe.seeds[0], tokenizer).train
        return list(render(train.select(range(min(ROWS, len(train)))), recipe.data))
    few = {"train_size": min(recipe.data.train_size, ROWS), "heldout_size": 1, "test_size": 1}
    splits = load_splits(recipe.data.changed(**few), recipe.seeds[0])
    return list(render(splits.train, recipe.data))


# ---- the tokenizer


def check_special_tokens(tokenizer: Any) -> list[Finding]:
    """Pad and EOS. Takes a tokenizer as load_tokenizer gives it: one without a pad token pads with EOS."""
    eos: str | None = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        what = "the tokenizer has no EOS token: completions are trained without an end, and generation runs on to "
        what += "evaluate.max_new_tokens"
        return [Finding("tokenizer", "warning", what, "give it an EOS token and save it again")]
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        what = f"EOS ({eos!r}) is also the pad token; padding is masked by length, so EOS keeps its label"
        return [Finding("tokenizer", "note", what)]
    return [Finding("tokenizer", "ok", f"pad is {tokenizer.pad_token!r}, EOS is {eos!r}")]


def check_template(tokenizer: Any, encoding: Encoding, prompt: str | Chat = "a") -> list[Finding]:
    """Whether the recipe's `data.chat_template` suits the tokenizer, and takes a row's prompt."""
    wanted = encoding.chat_template
    if not wanted and not getattr(tokenizer, "chat_template", None):
        return [Finding("chat template", "ok", "the tokenizer has none, and the recipe asks for none")]
    if not wanted:
        what = "the tokenizer has a chat template, but data.chat_template is false: an instruct model is then trained "
        what += "and asked in a form that it was not tuned on"
        return [Finding("chat template", "warning", what, "data.chat_template=true (a base model can stay as it is)")]
    template = encoding.template(tokenizer)
    try:
        check_chat_template(template)
        asked = replace(encoding, max_length=WHOLE).asked(tokenizer, prompt, ["b"])
    except InputError as error:
        return [problem_of("chat template", error)]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in asked.end:
        what = f"the template ends an answer with {tokenizer.decode(asked.end)!r}, and EOS is {tokenizer.eos_token!r}: "
        what += "the model may not stop where its template does"
        return [Finding("chat template", "warning", what, "use a tokenizer whose eos_token ends a turn")]
    if template.writes_date:
        what = f"the template writes the date, for which it is told {template.today}"
        return [Finding("chat template", "note", what, "data.template_date names another day")]
    return [Finding("chat template", "ok", "the template writes prompt and answer, and EOS ends the answer")]


# ---- rows


def check_spans(rows: list[dict], tokenizer: Any, encoding: Encoding) -> list[Finding]:
    """Rows of which nothing would be learnt, and whether EOS is at the end of every completion with its label."""
    empty, reasons, endless = [], [], []
    for i, row in enumerate(rows):
        name = row.get("example_id", i)
        try:
            encoded = encoding.row(tokenizer, *prompt_and_completion(row))
        except InputError as error:
            empty.append(name)
            reasons.append(str(error))
            continue
        if all(label == IGNORE for label in encoded["labels"][1:]):
            empty.append(name)
            reasons.append("no label is left")
        elif not _ends(encoded, tokenizer):
            endless.append(name)
    findings, of_rows = [], f"of {len(rows)} rows looked at"
    if empty:
        what = f"{len(empty)} {of_rows} have no supervised token: examples {_names(empty)} ({reasons[0]})"
        findings.append(Finding("labels", "problem", what, "raise data.max_length, or drop the rows"))
    if endless and tokenizer.eos_token_id is not None:
        what = f"{len(endless)} {of_rows} do not end in a supervised EOS: examples {_names(endless)}"
        findings.append(Finding("labels", "problem", what, "check how data.encoding makes rows of this tokenizer"))
    end = "a supervised EOS at the end" if tokenizer.eos_token_id is not None else "no EOS"
    return findings or [Finding("labels", "ok", f"each {of_rows} has supervised tokens and {end}")]


def _ends(encoded: dict[str, list[int]], tokenizer: Any) -> bool:
    """Whether a supervised EOS ends the row; a chat template may write white space behind it."""
    ids, eos = encoded["input_ids"], tokenizer.eos_token_id
    last = max((i for i, token in enumerate(ids) if token == eos), default=None)
    return last is not None and encoded["labels"][last] == eos and not tokenizer.decode(ids[last + 1 :]).strip()


def check_verbalisers(
    tokenizer: Any, verbalizers: dict[str, str], encoding: Encoding, prompt: str | Chat
) -> list[Finding]:
    """Whether labels can be told apart by their tokens."""
    try:
        if verbalizers:
            check_verbalizers(tokenizer, verbalizers, encoding, prompt)
    except InputError as error:
        return [problem_of("verbalizers", error)]
    return []


def check_prompts(
    rows: list[dict], tokenizer: Any, encoding: Encoding, verbalizers: dict[str, str], sample: int = 20
) -> list[Finding]:
    """Whether training shows the tokens with which a model is asked by others, and what a cut does to them."""
    findings, apart, cut, rows = [], [], 0, rows[:sample]
    whole = replace(encoding, max_length=WHOLE)
    for i, (row, prompt) in enumerate(zip(rows, prompts_of(rows), strict=True)):
        completions = [*verbalizers.values()] or [row["completion"]]
        shown = whole.asked(tokenizer, prompt, completions).prompt
        if whole.alone(tokenizer, prompt)[: len(shown) + 1] != shown:
            apart.append(row.get("example_id", i))
        cut += len(whole.row(tokenizer, prompt, row["completion"])["input_ids"]) > encoding.max_length
    if apart:
        what = f"a prompt without its answer has other tokens than in training: examples {_names(apart)}. Evaluation "
        what += "asks with those of training; whoever asks with the prompt alone sees a model that is off its training"
        remedy = "begin completions with a space rather than end data.prompt with one; with a chat template, see "
        remedy += "data.chat_template_kwargs"
        findings.append(Finding("prompts", "warning", what, remedy))
    if encoding.chat_template and cut:
        what = f"{cut} of {len(rows)} rows looked at are longer than max_length: a prompt that is cut loses the "
        what += "beginning of its template"
        findings.append(Finding("prompts", "warning", what, "raise data.max_length, or lower data.max_words"))
    return findings or [Finding("prompts", "ok", "evaluation asks with the tokens that training shows")]


def _names(ids: list[Any]) -> str:
    return ", ".join(map(str, ids[:NAMED])) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
