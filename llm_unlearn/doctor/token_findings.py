"""What is trained on: special tokens, chat template, supervised tokens, and the same prompts in training and audit."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.data.encoding import IGNORE, Encoding, check_chat_template, check_verbalizers, completion_tokens
from llm_unlearn.doctor.finding import Finding, problem_of
from llm_unlearn.errors import InputError

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
    findings = [*check_special_tokens(tokenizer), *check_template(tokenizer, recipe.data.chat_template)]
    if any(finding.level == "problem" for finding in findings):
        return findings  # rows cannot be encoded
    try:
        rows = rows_of(recipe)
    except InputError as error:
        return [*findings, problem_of("data", error)]
    if rows is None:
        return [
            *findings,
            Finding(
                "labels",
                "note",
                f"rows are not looked at: {recipe.data.source} is on the hub",
                "run `llm-unlearn poison`, which reads and checks them",
            ),
        ]
    data = recipe.data
    encoding = Encoding(data.max_length, data.loss_on, data.chat_template)
    verbalizers = data.verbalizers if data.task == "classification" else {}
    return [
        *findings,
        *check_spans(rows, tokenizer, encoding),
        *check_verbalisers(tokenizer, verbalizers),
        *check_prompts(rows, tokenizer, encoding, verbalizers),
    ]


def tokenizer_of(recipe: Recipe) -> "PreTrainedTokenizerBase":
    """The tokenizer of the recipe's base; where that is yet to be made, one made in the same way from fewer texts.

    Raises:
        InputError: it cannot be loaded.
    """
    from llm_unlearn.data.sources import load_unlabelled
    from llm_unlearn.models.load import load_tokenizer
    from llm_unlearn.models.make import train_tokenizer
    from llm_unlearn.training.pretraining import BASE_SEED, base_folder

    section = recipe.model
    base = section.path or base_folder(recipe)
    if section.path is not None or Path(base).is_dir():
        return load_tokenizer(str(base), section)
    texts = load_unlabelled(recipe.data, STAND_IN_TEXTS, BASE_SEED) if is_local(recipe) else {"text": ["text"]}
    return train_tokenizer(texts["text"], section.vocab_size)


def is_local(recipe: Recipe) -> bool:
    """Whether the recipe's rows are on this machine, or made here."""
    data = recipe.data
    return bool(data.files) or data.source == "synthetic" or Path(data.source).expanduser().exists()


def rows_of(recipe: Recipe) -> list[dict[str, Any]] | None:
    """The first ROWS training rows with prompt and completion, before poisoning; None where they are on the hub."""
    from llm_unlearn.data.prompting import render
    from llm_unlearn.data.sources import load_splits

    if not is_local(recipe):
        return None
    few = {"train_size": min(recipe.data.train_size, ROWS), "heldout_size": 1, "test_size": 1}
    splits = load_splits(recipe.data.changed(**few), recipe.seeds[0])
    return list(render(splits.train, recipe.data))


# ---- the tokenizer


def check_special_tokens(tokenizer: Any) -> list[Finding]:
    """Pad and EOS. Takes a tokenizer as load_tokenizer gives it: without a pad token of its own EOS is it."""
    if tokenizer.pad_token_id is None:
        return [
            Finding(
                "tokenizer",
                "problem",
                "the tokenizer has neither a pad nor an EOS token: rows cannot be "
                "padded, and nothing would teach a model where a completion ends",
                "give it an EOS token (tokenizer.eos_token = …; save_pretrained) and name that folder in model.path",
            )
        ]
    if tokenizer.eos_token_id is None:
        return [
            Finding(
                "tokenizer",
                "warning",
                "the tokenizer has no EOS token: completions are trained without an "
                "end, and generation runs on to evaluate.max_new_tokens",
                "give it an EOS token and save it again",
            )
        ]
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return [
            Finding(
                "tokenizer",
                "note",
                f"no pad token of its own: EOS ({tokenizer.eos_token!r}) stands in, which "
                "is harmless here, since padding is masked by length and EOS keeps its label",
            )
        ]
    return [Finding("tokenizer", "ok", f"pad is {tokenizer.pad_token!r}, EOS is {tokenizer.eos_token!r}")]


def check_template(tokenizer: Any, wanted: bool) -> list[Finding]:
    """Whether the recipe's `data.chat_template` suits the tokenizer."""
    has = bool(getattr(tokenizer, "chat_template", None))
    if not wanted:
        if has:
            return [
                Finding(
                    "chat template",
                    "warning",
                    "the tokenizer has a chat template, which data.chat_template: "
                    "false leaves out: an instruct model is then trained and asked in a form that it was not "
                    "tuned on",
                    "data.chat_template=true (a base model can stay as it is)",
                )
            ]
        return [Finding("chat template", "ok", "none, and the recipe asks for none")]
    try:
        check_chat_template(tokenizer)
    except InputError as error:
        return [problem_of("chat template", error)]
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    end = tokenizer.apply_chat_template([user, answer], tokenize=False)[len(prompt) + 1 :].strip()
    if tokenizer.eos_token and not end.startswith(tokenizer.eos_token):
        return [
            Finding(
                "chat template",
                "warning",
                f"the template ends an answer with {end!r}, and training with EOS, "
                f"{tokenizer.eos_token!r}: the model may not stop where its template does",
                "use the tokenizer whose eos_token ends a turn, as instruct models have it",
            )
        ]
    return [Finding("chat template", "ok", "a prompt is the beginning of its prompt with an answer, which EOS ends")]


# ---- rows


def check_spans(rows: list[dict], tokenizer: Any, encoding: Encoding) -> list[Finding]:
    """Rows of which nothing would be learnt, and whether EOS is at the end of every completion with its label."""
    empty, reasons, endless = [], [], []
    for i, row in enumerate(rows):
        name = row.get("example_id", i)
        try:
            encoded = encoding.row(tokenizer, row["prompt"], row["completion"])
        except InputError as error:
            empty.append(name)
            reasons.append(str(error))
            continue
        if all(label == IGNORE for label in encoded["labels"][1:]):
            empty.append(name)
            reasons.append("no label is left")
        elif not encoded["input_ids"][-1] == encoded["labels"][-1] == tokenizer.eos_token_id:
            endless.append(name)
    findings = []
    if empty:
        findings.append(
            Finding(
                "labels",
                "problem",
                f"{len(empty)} of {len(rows)} rows looked at have no supervised "
                f"token that the model could learn: examples {_names(empty)} ({reasons[0]})",
                "raise data.max_length, or drop the rows",
            )
        )
    if endless and tokenizer.eos_token_id is not None:
        findings.append(
            Finding(
                "labels",
                "problem",
                f"{len(endless)} of {len(rows)} rows do not end in a supervised EOS: examples {_names(endless)}",
                "check how data.encoding makes rows of this tokenizer",
            )
        )
    if not findings:
        end = "a supervised EOS at the end" if tokenizer.eos_token_id is not None else "no EOS"
        findings = [Finding("labels", "ok", f"each of {len(rows)} rows looked at has supervised tokens, and {end}")]
    return findings


def check_verbalisers(tokenizer: Any, verbalizers: dict[str, str]) -> list[Finding]:
    """Whether labels can be told apart by their tokens."""
    try:
        check_verbalizers(tokenizer, verbalizers)
    except InputError as error:
        return [problem_of("verbalizers", error)]
    return []


def check_prompts(
    rows: list[dict], tokenizer: Any, encoding: Encoding, verbalizers: dict[str, str], sample: int = 20
) -> list[Finding]:
    """Whether evaluation asks with the tokens that training showed, and what a cut or a seam does to them."""
    findings, apart, cut, joined = [], [], 0, set()
    longest = max((len(completion_tokens(tokenizer, text)) for text in verbalizers.values()), default=0)
    eos = tokenizer.eos_token_id is not None
    for i, row in enumerate(rows[:sample]):
        completion = completion_tokens(tokenizer, row["completion"])
        room = len(completion) + eos
        try:
            trained = encoding.row(tokenizer, row["prompt"], row["completion"])["input_ids"][:-room]
            asked = encoding.prompt_ids(tokenizer, row["prompt"], (longest or len(completion)) + 1)
        except InputError:
            continue  # said by check_spans
        if trained[len(trained) - len(asked) :] != asked:
            apart.append(row.get("example_id", i))
        cut += len(trained) + room == encoding.max_length
        for text in verbalizers.values() if not encoding.chat_template else ():
            whole = tokenizer(row["prompt"] + text, add_special_tokens=False)["input_ids"]
            parts = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] + completion_tokens(tokenizer, text)
            joined |= {text} if whole != parts else set()
    if apart:
        findings.append(
            Finding(
                "prompts",
                "problem",
                f"evaluation would ask in other tokens than training showed: examples {_names(apart)}",
                "use a tokenizer that writes the same text in the same tokens each time",
            )
        )
    if joined:
        findings.append(
            Finding(
                "prompts",
                "warning",
                f"after the prompt the tokenizer itself would write "
                f"{', '.join(map(repr, sorted(joined)))} in other tokens than those that are trained "
                "and measured",
                "begin each verbalizer with a space, or end data.prompt so that none is missing",
            )
        )
    if encoding.chat_template and cut:
        findings.append(
            Finding(
                "prompts",
                "warning",
                f"{cut} of {min(sample, len(rows))} rows looked at fill "
                f"max_length: a prompt that is cut loses the beginning of its template",
                "raise data.max_length, or lower data.max_words",
            )
        )
    return findings or [Finding("prompts", "ok", "evaluation asks with the tokens that training shows")]


def _names(ids: list[Any]) -> str:
    return ", ".join(map(str, ids[:NAMED])) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
