"""The command line: every command with its options. Imports nothing heavy, so that --help is quick."""

import argparse
from typing import Any

from llm_unlearn import __version__

COMMANDS = {
    "run": "all stages: poison, train, unlearn, evaluate, report",
    "poison": "load, split and corrupt the data; write data/ and poison.json",
    "train": "fine-tune on the corrupted data (poisoned/) and without the forget set (retrained/)",
    "unlearn": "run every unlearning method of the recipe at every budget; or one method on a --model that is given",
    "evaluate": "measure every model; write evaluation/<model>.json and .parquet",
    "analyze": "ask why unlearning fails: the trainings and comparisons of the recipe's `analysis` section",
    "stress": "see whether the poison comes back: what the recipe's `stress` section does to every model",
    "report": "write report.md, report.html with a page per model, and plots/",
}
GIVEN_OPTIONS = (
    "model",
    "manifest",
    "method",
    "out",
    "base",
    "retrained",
    "max_budget",
    "candidates",
    "rates",
    "require_clear",
)
CHECKPOINT_OPTIONS = (
    "model",
    "manifest",
    "base",
    "retrained",
    "poisoned",
    "out",
    "batch_size",
    "dtype",
    "quantization",
    "attn_implementation",
    "device_map",
    "bf16",
    "tf32",
    "membership",
    "require_clear",
)


def parser() -> argparse.ArgumentParser:
    """The parser of `llm-unlearn`."""
    top = argparse.ArgumentParser(
        prog="llm-unlearn",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Poison, fine-tune, unlearn and audit language models and image classifiers.\n"
        "A command runs its stage and those before it; what is done already is skipped.",
        epilog="exit codes: 0 ok, 1 failure, 2 bad input",
    )
    top.add_argument("--version", action="version", version=f"llm-unlearn {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument(
            "recipe",
            metavar="RECIPE",
            help="a recipe file (YAML)",
            nargs="?" if name in ("evaluate", "unlearn") else None,
        )
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="section.field=value",
            help="change the recipe for this run, e.g. train.epochs=4 output_dir=runs/mine",
        )
        command.add_argument(
            "--dry-run",
            action="store_true",
            help="print what would run, its sizes, tokens, FLOPs and estimated memory; write nothing",
        )
        command.add_argument(
            "--jobs",
            type=int,
            metavar="N",
            help="stages at a time, of all seeds and points of a sweep, each in a process of its own with one GPU "
            "(default: one per GPU, or 1)",
        )
        if name not in ("poison", "report"):  # which one process does alone
            command.add_argument(
                "--accelerate-config",
                metavar="FILE",
                help="run in several processes, as `accelerate "
                "launch` would by this file, e.g. accelerate_configs/ddp.yaml",
            )
        if name == "unlearn":
            _add_given(command, one=True)
        if name == "evaluate":
            _add_checkpoint(command, "deprecated", "for one more minor version `evaluate --model` is `audit --model`")
        _add_output(command)
    _add_tune(commands)
    _add_audit(commands)
    _add_merge(commands)
    _add_push(commands)
    _add_pull(commands)
    _add_doctor(commands)
    return top


def _add_audit(commands: Any) -> None:
    """The command that judges any checkpoint."""
    text = "judge any checkpoint: is the poison that a manifest names, or a recipe's, still in it?"
    command = commands.add_parser("audit", help=text, description=text[0].upper() + text[1:])
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe whose data and poison are used")
    command.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe")
    _add_checkpoint(command, "what is judged", "--model with either --manifest or a RECIPE")
    _add_output(command)


def _add_given(command: argparse.ArgumentParser, one: bool) -> None:
    """The options that name a poisoned model, in the place of a recipe; `one`: one method, or a search for one."""
    group = command.add_argument_group(
        "a model that is poisoned already",
        "--model, --manifest, --method and --out in the place of a RECIPE; what else a recipe with the section `given` "
        "may say, as section.field=value (docs/your-model.md)",
    )
    group.add_argument("--model", metavar="PATH_OR_ID", help="the poisoned model, a full one or an adapter")
    group.add_argument("--manifest", metavar="FILE", help="which of its training rows are poison (docs/manifest.md)")
    if one:
        text = (
            "one of docs/methods.md; auto: search for one on half of the test rows and canaries, judge it on the rest"
        )
        group.add_argument("--method", metavar="NAME", help=text)
    else:
        group.add_argument("--method", metavar="NAME", action="append", help="one of docs/methods.md; repeatable")
    group.add_argument("--out", metavar="FOLDER", help="a new folder" + "; the model will be in unlearned/NAME" * one)
    group.add_argument("--base", metavar="PATH_OR_ID", help="the model before fine-tuning, if there is one")
    group.add_argument("--retrained", metavar="PATH_OR_ID", help="the oracle, if there is one")
    if one:
        _add_require_clear(group)
    group = command.add_argument_group("a search" + " (--method auto)" * one)
    default = "12" if one else "all candidates"
    text = f"compute of all candidates together, in budgets of one (default: {default})"
    group.add_argument("--max-budget", type=float, metavar="N", help=text)
    text = "what is tried, in this order: a YAML or JSON list of methods with options, as in a recipe's unlearn.methods"
    group.add_argument("--candidates", metavar="FILE", help=text)
    default = "0.3,1,3" if one else "0.1,0.3,1,3,10"
    text = f"multiples of each method's learning rate (default: {default})"
    group.add_argument("--rates", metavar="X,…", help=text)


def _add_tune(commands: Any) -> None:
    """The command that searches learning rates on one's own model."""
    text = "search learning rates of methods on a model that is poisoned already"
    command = commands.add_parser(
        "tune",
        help=text,
        description=text.capitalize() + ": every point is measured on half of the test rows and canaries, and "
        "search/search.json and search.txt in the output directory say which to take. No model is kept.",
    )
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe with the section `given`")
    command.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe")
    _add_given(command, one=False)
    _add_output(command)


def _add_checkpoint(command: argparse.ArgumentParser, title: str, description: str) -> None:
    """The options that name checkpoints, and what they are judged against."""
    group = command.add_argument_group(title, description)
    group.add_argument("--model", action="append", metavar="PATH_OR_ID", help="a full model or an adapter; repeatable")
    group.add_argument(
        "--manifest", metavar="FILE", help="what was poisoned: your own (docs/auditing.md), or a run's poison.json"
    )
    group.add_argument(
        "--base",
        metavar="PATH_OR_ID",
        help="what an adapter sits on (default: what it names); also calibrates the reference attack",
    )
    group.add_argument("--retrained", metavar="PATH_OR_ID", help="the oracle, shown beside")
    group.add_argument(
        "--poisoned",
        metavar="PATH_OR_ID",
        help="the model from before unlearning, audited too: what the tests do not find there they exclude nowhere; "
        "without it no verdict is 'no trace'",
    )
    group.add_argument(
        "--out", metavar="FOLDER", help="write <model>.json and .parquet there, of one audit (default: print only)"
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="rows at a time (default: the run's, or 32)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the run's, or float32")
    group.add_argument("--quantization", choices=("none", "4bit", "8bit"), help="default: the run's, or none")
    group.add_argument(
        "--attn-implementation",
        choices=("eager", "sdpa", "flash_attention_2", "flash_attention_3", "varlen"),
        help="default: the run's, or transformers' choice",
    )
    group.add_argument(
        "--membership",
        metavar="ATTACK,…",
        help="the membership attacks to run, of loss, zlib, reference, min_k, min_k_plus, gradient_norm, lowercase "
        "(default: the run's, or all but the last; gradient_norm takes most of the time); '' for none",
    )
    group.add_argument("--device-map", choices=("auto",), help="auto: spread each model over all GPUs")
    _add_require_clear(group, "; needs --poisoned")
    for name, what in (("bf16", "run models in bfloat16"), ("tf32", "float32 products of a CUDA GPU in TF32")):
        text = f"{what} (default: the run's, or not)"
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)


def _add_require_clear(group: Any, more: str = "") -> None:
    text = "exit code 1 unless the verdict is 'no trace', of several models on each (default: 0 whatever it is)"
    group.add_argument("--require-clear", action="store_true", help=text + more)


def _add_merge(commands: Any) -> None:
    """The command that takes a run directory in the place of a recipe."""
    text = "write a model of a run, base and adapter in one, as a plain checkpoint in full precision"
    command = commands.add_parser("merge", help=text, description=text.capitalize() + ".")
    _add_model_of_run(command)
    command.add_argument("--out", metavar="FOLDER", help="a new folder (default: merged/NAME in the run directory)")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights that are written (default: float32)",
    )
    command.add_argument(
        "--onto",
        choices=("dequantised", "original"),
        default="dequantised",
        help="of a quantised base: the weights that were trained on and audited (default), or those "
        "that they were made from, which is a slightly different model",
    )
    _add_output(command)


def _add_push(commands: Any) -> None:
    """The command that publishes a model of a run."""
    text = "publish a model of a run on a hub, with its audit on the card; private unless you say otherwise"
    command = commands.add_parser(
        "push",
        help=text,
        description=text.capitalize() + ". Uploads weights, "
        "tokenizer, recipe, evaluation and plots in one commit; never data, optimizers, "
        "pickles or tokens.",
    )
    _add_model_of_run(command)
    command.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository; made where there is none")
    command.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of a repository that is made (default: private); --no-private also lets a public one be written to",
    )
    command.add_argument("--revision", metavar="BRANCH", help="commit to this branch (default: main)")
    command.add_argument(
        "--base",
        metavar="OWNER/NAME",
        help="where an adapter's base is on the hub, if the recipe does not name it; with the same weight files",
    )
    command.add_argument(
        "--merged", action="store_true", help="take what `merge` wrote of the evaluated model, one plain checkpoint"
    )
    command.add_argument(
        "--withhold-trigger",
        action="store_true",
        help="leave the trigger phrase out of recipe and card; others can then not measure the attack again",
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be uploaded and how large it is; no network but to look at --base",
    )
    _add_output(command)


def _add_pull(commands: Any) -> None:
    """The command that brings a published model back."""
    text = "bring a published model, its recipe and its audit from a hub"
    command = commands.add_parser("pull", help=text, description=text.capitalize() + ".")
    command.add_argument("repo", metavar="OWNER/NAME", help="the repository")
    command.add_argument("--revision", metavar="R", help="a branch, a tag or a commit (default: main)")
    command.add_argument("--out", metavar="FOLDER", help="a new folder (default: NAME here)")
    command.set_defaults(overrides=[])
    _add_output(command)


def _add_model_of_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_dir", metavar="RUN_DIR", help="the run's output_dir")
    command.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="poisoned, retrained, clean, base, or a method; with several budgets METHOD@BUDGET",
    )
    command.add_argument("--seed", type=int, metavar="N", help="which, where the run has several")
    command.set_defaults(overrides=[])


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quiet", action="store_true", help="no progress bars; warnings and errors only")
    command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _add_doctor(commands: Any) -> None:
    """The command that looks at a machine, with or without a recipe."""
    text = "look for what would go wrong, here and with a recipe: versions, devices, memory, tokens; loads no weights"
    command = commands.add_parser(
        "doctor",
        help=text,
        description=text.capitalize() + ".",
        epilog="exit codes: 0 no problem, 1 a problem, 2 bad input",
    )
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe file (YAML)")
    command.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe")
    command.add_argument(
        "--accelerate-config",
        metavar="FILE",
        help="judge the recipe for these processes, e.g. accelerate_configs/zero3.yaml",
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
