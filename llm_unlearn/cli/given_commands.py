"""The commands on a model that is poisoned already: `unlearn --model` and `tune`."""

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.search_fields import SearchSection
from llm_unlearn.config.strict import parse_yaml
from llm_unlearn.config.validate import validated
from llm_unlearn.errors import InputError
from llm_unlearn.runs.environment import calm_libraries

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import GivenRecipe

logger = logging.getLogger(__name__)

NEEDED = ("model", "manifest", "method", "out")


def unlearn_given(args: argparse.Namespace) -> int:
    """Run one method on a model that is poisoned already, or search for one; measure it and write the report."""
    if args.accelerate_config or args.jobs:
        raise InputError("--accelerate-config, --jobs: are for a recipe; write one with the section `given`")
    if args.dry_run and args.require_clear:
        raise InputError("--require-clear: a dry run has no verdict; leave one of the two out")
    searching = args.method == "auto"
    section = _section(args)
    if not searching and section != SearchSection():
        raise InputError("--max-budget, --candidates, --rates: are of a search; give --method auto")
    recipe = _recipe(args, {} if searching else {args.method: None})
    calm_libraries(args.quiet or args.json)
    if args.dry_run:
        from llm_unlearn.cli.dry_run import describe_plan

        plan = describe_plan(recipe, "report")
        if searching:
            from llm_unlearn.runs.candidates import AUTO_BUDGETS
            from llm_unlearn.runs.search import checked_candidates

            plan["candidates"] = [str(each) for each in checked_candidates(recipe, section)]
            most = f"for at most {section.max_budget or AUTO_BUDGETS:g} budgets together"
            plan["text"] += "\n".join(["", "", f"candidates, in this order, {most}:", *plan["candidates"]])
        print(json.dumps(plan, indent=2) if args.json else plan["text"])
        return 0
    from llm_unlearn.metrics.evidence import Status
    from llm_unlearn.runs.auto import auto
    from llm_unlearn.runs.one_method import verdict_of
    from llm_unlearn.runs.pipeline import run
    from llm_unlearn.runs.search_text import nothing_passes

    method, root = args.method, Path(recipe.output_dir)
    if searching:
        found = auto(recipe, section, quiet=args.quiet or args.json)
        if found.passed is None:
            print(json.dumps({"search": found.to_json(), "model": None}) if args.json else nothing_passes(found))
            return 1
        method = found.passed.method
    else:
        run(recipe, quiet=args.quiet or args.json)
    verdict, model = verdict_of(root, method), root / "unlearned" / method
    result = {"model": str(model), "report": str(root / "report.html"), "run_dir": str(root)}
    if args.json:
        more = {"search": found.to_json()} if searching else {}
        print(json.dumps({**result, "verdict": verdict.judgement, "because": verdict.because, **more}))
    else:
        print(": ".join(text for text in (method, verdict.judgement, verdict.because) if text))
        for name, value in result.items():
            logger.info("%s: %s", name.replace("_", " "), value)
    return 0 if verdict.status == Status.CLEAR or not args.require_clear else 1


def tune(args: argparse.Namespace) -> int:
    """Search learning rates of methods on a model that is poisoned already, and print the table."""
    from llm_unlearn.config.recipe import GivenRecipe
    from llm_unlearn.config.recipe_files import load_recipe

    if args.recipe and not given(args):
        loaded = load_recipe(args.recipe, args.overrides)
        if not isinstance(loaded, GivenRecipe):
            raise InputError(f"{args.recipe}: trains its own models; tune takes a recipe with the section `given`")
        recipe = loaded
    else:
        recipe = _recipe(args, dict.fromkeys(args.method or (), None))
    section = _section(args)
    calm_libraries(args.quiet or args.json)
    from llm_unlearn.runs.auto import tune as search
    from llm_unlearn.runs.search_text import as_text, chosen_options

    found = search(recipe, section, quiet=args.quiet or args.json)
    if args.json:
        print(json.dumps({**found.to_json(), "chosen": chosen_options(found)}, indent=2))
    else:
        print(as_text(found), end="")
        logger.info("table: %s", found.run.folder / "search.json")
    return 0


def given(args: argparse.Namespace) -> bool:
    """Whether a model is named in the place of a recipe."""
    return any(getattr(args, name) for name in (*NEEDED, "base", "retrained"))


def _recipe(args: argparse.Namespace, methods: dict[str, Any]) -> "GivenRecipe":
    """The recipe that the options stand for."""
    from llm_unlearn.runs.one_method import given_recipe

    optional = ("method",) if args.command == "tune" and args.candidates else ()
    missing = [f"--{name}" for name in NEEDED if not getattr(args, name) and name not in optional]
    overrides = [*([args.recipe] if args.recipe else []), *args.overrides]
    if missing or not all("=" in word for word in overrides):
        beside = [word for word in overrides if "=" not in word]
        seen = f"{beside[0]} beside them" if beside else f"no {', '.join(missing)}"
        needed = "--model, --manifest, --method and --out"
        raise InputError(f"{args.command}: give a RECIPE, or {needed} in its place; got {seen}")
    models = {name: getattr(args, name) for name in ("base", "retrained")}
    return given_recipe(args.model, args.manifest, methods, args.out, overrides=overrides, **models)


def _section(args: argparse.Namespace) -> SearchSection:
    """What the options say of the search."""
    said: dict[str, Any] = {}
    if args.max_budget is not None:
        said["max_budget"] = args.max_budget
    if args.rates is not None:
        said["rates"] = parse_yaml(f"[{args.rates}]", "--rates")
    if args.candidates is not None:
        path = Path(args.candidates).expanduser()
        if not path.is_file():
            raise InputError(f"--candidates {path}: no such file")
        said["candidates"] = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    return validated(SearchSection, said, "search")
