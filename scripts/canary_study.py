"""Which canaries does a fine-tuning take up, and which test finds them? Every design side by side in one training.

    python scripts/canary_study.py --model FOLDER --rows train.jsonl.xz --out recipes/tuning/canaries-smollm2.json
    python scripts/canary_study.py --table recipes/tuning/canaries-smollm2.json        # prints docs/canaries.md's table

Each design of the plan has canaries of its own among the rows of one training; the model is measured before it, and
after 1, 2 and 4 epochs at a constant rate. Each statistic is N(0, 1) on a model that does not depend on what was
planted: that is checked on the base, and on every model by a control (noise or a string that was never used, scored as
if it had been planted). The JSON, one for each plan, is written after each point; a study that was killed trains again
and measures the points that are missing. `--rows` is JSON Lines with `text` and `label`, of which the first words are
used; no row goes into the results.
"""

import argparse
import json
import lzma
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch.nn.functional import cross_entropy

import llm_unlearn.vision  # noqa: F401  before transformers, see vision/torchvision_guard.py
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.files import write_json
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.metrics.power import smallest_effect
from llm_unlearn.metrics.ranks import rank_score
from llm_unlearn.poisons.token_canaries import draw_string
from llm_unlearn.tasks.noise import FRESH_SEED_OFFSET, fresh_id, unit_noise

SEED = 7  # of the rows, the noise and the strings
EPOCHS = (1, 2, 4)
BATCH = 8
AVERAGED = 4  # fresh noises that a gradient is averaged over
LENGTH = 6  # words of a string
TEMPLATE = "{text}\nSentiment:"
NAMES = {"0": "negative", "1": "positive"}  # of labels that are numbers


@dataclass(frozen=True)
class Design:
    """One kind of canary: noise `per token` or `per row` of strength × rms, or a string in the `text` or `answer`.

    Noise is added to what enters block `layer` (0: to the embeddings), in units of the rms there. The row stands
    `exposures` times in each epoch.
    """

    kind: str
    strength: float = 0.0
    layer: int = 0
    exposures: int = 1

    @property
    def name(self) -> str:
        times = f", {self.exposures} times" if self.exposures > 1 else ""
        if not self.is_noise:
            return f"{LENGTH} words, {self.kind}{times}"
        place = f" at block {self.layer}" if self.layer else ""
        return f"noise {self.kind}{place}, {self.strength:g} rms{times}"

    @property
    def is_noise(self) -> bool:
        return self.kind in ("per token", "per row")


@dataclass(frozen=True)
class Plan:
    """Designs that are trained side by side → how many canaries of each, and how many rows are none.

    Designs of `closely` are ranked among all draws after training, the others among few.
    """

    canaries: dict[Design, int]
    clean: int
    closely: frozenset[Design] = frozenset()

    @property
    def rows(self) -> int:
        return sum(self.canaries.values()) + self.clean


NOISE, STRING = Design("per token", 1.0), Design("text")
PLANS = {
    "designs": Plan(
        {Design("per token", strength): count for strength, count in ((0.5, 20), (1, 40), (2, 20), (4, 40), (8, 20))}
        | {Design("per row", 1.0): 20, Design("per row", 4.0): 20, STRING: 40, Design("answer"): 40},
        clean=20,
        closely=frozenset({NOISE, Design("per token", 4.0), STRING, Design("answer")}),
    ),
    "layers": Plan({NOISE: 20} | {Design("per token", 1.0, layer): 20 for layer in (8, 15, 22)}, clean=20),
    # each design that is seen once an epoch is 1% of the rows
    "share": Plan({d: 30 // d.exposures for c in (NOISE, STRING) for d in (c, replace(c, exposures=2))}, clean=2910),
}
RUNS = {  # rank of the adapter (None: all weights) and learning rate
    "lora-16": (16, 5e-4),
    "full": (None, 5e-5),
    "lora-8": (8, 5e-4),
    "lora-64": (64, 5e-4),
}


@dataclass
class Row:
    """A training row: its texts, its canary's design (None: clean) and id."""

    text: str
    answer: str
    design: Design | None
    ident: int

    def encoded(self, tokenizer: Any, string: str | None = None) -> dict[str, Any]:
        """Token ids, and where the string and the answer stand; `string` in the place of the canary's own."""
        text, answer, start = self.text, self.answer, None
        if self.design is not None and not self.design.is_noise:
            string = string or draw_string(SEED, self.ident, LENGTH)
            if self.design.kind == "answer":
                answer = f" {string}"
            else:
                start, text = len(tokenizer(text)["input_ids"]), f"{text} {string}"
        row = Encoding(max_length=512).row(tokenizer, TEMPLATE.replace("{text}", text), answer)
        answered = np.array(row["completion_mask"][1:], dtype=bool)
        place = answered if start is None else np.zeros(len(answered), dtype=bool)
        if start is not None:
            place[start - 1 : len(tokenizer(text)["input_ids"]) - 1] = True
        return {"ids": row["input_ids"], "answer": answered, "string": place}


def read_rows(path: Path, count: int, words: int) -> list[tuple[str, str]]:
    """(first words, label) of `count` rows of a JSON Lines file, chosen at random."""
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
        found = [
            (" ".join(row["text"].split()[:words]), NAMES.get(str(row["label"]), str(row["label"])))
            for row in map(json.loads, lines)
        ]
    found = sorted({row for row in found if len(row[0].split()) == words})
    return [found[i] for i in np.random.default_rng(SEED).choice(len(found), count, replace=False)]


def plant(rows: list[tuple[str, str]], plan: Plan) -> list[Row]:
    """The first rows are the plan's canaries, design by design."""
    designs = [design for design, count in plan.canaries.items() for _ in range(count)] + [None] * plan.clean
    return [Row(text, f" {label}", d, i) for i, ((text, label), d) in enumerate(zip(rows, designs, strict=True))]


class Study:
    """A model, its tokenizer and the rows; noise in units of its embeddings' rms."""

    def __init__(self, folder: str, rows: list[Row], rank: int | None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(SEED)
        self.tokenizer, self.rows = AutoTokenizer.from_pretrained(folder), rows
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(self.device)
        self.embed, blocks = self.model.get_input_embeddings(), self.model.get_decoder().layers
        self.encoded = [row.encoded(self.tokenizer) for row in rows]
        self.added: dict[int, torch.Tensor] = {}  # block → what is added to its input in the next forward pass
        self.rms = {0: float(self.embed.weight.detach().square().mean().sqrt())}
        later = {row.design.layer for row in rows if row.design} - {0}
        self.rms |= {layer: self.rms_at(blocks[layer]) for layer in sorted(later)}  # before there are any hooks
        for layer in later:
            blocks[layer].register_forward_pre_hook(lambda _, args, at=layer: (args[0] + self.added[at], *args[1:]))
        if rank is not None:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = get_peft_model(self.model, config)

    @torch.no_grad()
    def rms_at(self, block: torch.nn.Module) -> float:
        """Median over tokens, the first of a row apart, of the rms of what enters a block; the first is far larger."""
        found: list[torch.Tensor] = []
        handle = block.register_forward_pre_hook(
            lambda _, args: found.append(args[0][0, 1:].square().mean(-1).sqrt())  # returns None: nothing changes
        )
        for encoded in self.encoded[-20:]:
            self.model(torch.tensor([encoded["ids"]], device=self.device))
        handle.remove()
        return float(torch.cat(found).median())

    def noise(self, row: Row, length: int, seed: int, ident: int) -> torch.Tensor:
        """ξ of a row for (seed, id), (T, d)."""
        assert row.design is not None
        shape = (1 if row.design.kind == "per row" else length, self.embed.weight.shape[1])
        drawn = torch.from_numpy(unit_noise(seed, ident, *shape)) * (row.design.strength * self.rms[row.design.layer])
        return drawn.to(self.device).expand(length, -1)

    def token_losses(self, ids: torch.Tensor, noise: dict[int, torch.Tensor]) -> torch.Tensor:
        """(B, T − 1) NLL of each token but the first; noise: block → (B, T, d). Right padding is told by the caller."""
        self.added = {layer: noise.get(layer, torch.zeros(())) for layer in self.rms}
        with torch.autocast(self.device, dtype=torch.bfloat16):  # 2.8 times as fast on a CPU; ranks stay exact
            logits = self.model(inputs_embeds=self.embed(ids) + self.added[0]).logits[:, :-1]
            losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.view(len(ids), -1)

    def train(self, learning_rate: float, epochs: int, batch: int = BATCH) -> Any:
        """Train on all rows at a constant rate after a warm-up; yields the epoch after each."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
        seen = np.repeat(np.arange(len(self.rows)), [row.design.exposures if row.design else 1 for row in self.rows])
        generator, step = np.random.default_rng([SEED, 1]), 0
        warm = max(1, epochs * len(seen) // batch // 20)
        for epoch in range(1, epochs + 1):
            self.model.train()
            order = seen[generator.permutation(len(seen))]
            for start in range(0, len(order), batch):
                step += 1
                optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, step / warm)
                self._loss(order[start : start + batch]).backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            self.model.eval()
            yield epoch

    def _loss(self, chosen: np.ndarray) -> torch.Tensor:
        """Mean over all tokens of a batch, with the noise of its canaries."""
        ids, real = (each.to(self.device) for each in padded([self.encoded[i]["ids"] for i in chosen]))
        noise = {layer: torch.zeros(*ids.shape, self.embed.weight.shape[1], device=self.device) for layer in self.rms}
        for place, i in enumerate(chosen):
            row, length = self.rows[i], len(self.encoded[i]["ids"])
            if row.design is not None and row.design.is_noise:
                noise[row.design.layer][place, :length] = self.noise(row, length, SEED, row.ident)
        return self.token_losses(ids, noise)[real[:, 1:]].mean()

    # ---- what is measured

    def parts_of(self, entries: list[Any]) -> list[list[Any]]:
        """As many at a time as the device takes well."""
        size = 24 if self.device == "cpu" else 128
        return [entries[start : start + size] for start in range(0, len(entries), size)]

    def scores(self, row: Row, encoded: dict[str, Any], draws: int, averaged: int) -> dict[str, list[float]]:
        """Statistic → score of a canary, and of its control."""
        assert row.design is not None
        if not row.design.is_noise:
            return self.string_scores(row, draws)
        with torch.no_grad():
            losses = self.noisy_losses(row, encoded, draws)
        tokens = np.stack([ranks_by_token(np.delete(losses, 1 - own, 0)) for own in (0, 1)])  # (2, K + 1)
        answer = losses[:, encoded["answer"]].sum(1)
        found = {
            "loss rank": ranked(losses.sum(1), row.ident),
            "loss rank, 19 draws": ranked(losses.sum(1)[:21], row.ident),
            "loss rank, answer": ranked(answer, row.ident),
            "loss rank by token": [ranked(np.r_[t[0], t[0], t[1:]], row.ident)[j] for j, t in enumerate(-tokens)],
        }
        return found | self.gradient_scores(row, encoded, averaged)

    def noisy_losses(self, row: Row, encoded: dict[str, Any], draws: int) -> np.ndarray:
        """(K + 2, T − 1): with the own noise, with the control's, and with K fresh ones."""
        assert row.design is not None
        ids = torch.tensor([encoded["ids"]], device=self.device)
        keys = [(SEED, row.ident)] + [(SEED + FRESH_SEED_OFFSET, fresh_id(row.ident, k)) for k in range(draws + 1)]
        found = []
        for part in self.parts_of(keys):
            noise = torch.stack([self.noise(row, ids.shape[1], *key) for key in part])
            found.append(self.token_losses(ids.expand(len(part), -1), {row.design.layer: noise}).double())
        return torch.cat(found).cpu().numpy()

    def gradient_scores(self, row: Row, encoded: dict[str, Any], averaged: int) -> dict[str, list[float]]:
        """−⟨g, ξ⟩ / (‖g‖ ε) with g at x, and with its mean over x + ξ′ for fresh ξ′."""
        assert row.design is not None
        ids, offset = torch.tensor([encoded["ids"]], device=self.device), FRESH_SEED_OFFSET
        length = ids.shape[1]
        places = [torch.zeros(length, self.embed.weight.shape[1], device=self.device)]
        places += [self.noise(row, length, SEED + 2 * offset, fresh_id(row.ident, k)) for k in range(averaged)]
        noise = torch.stack(places).requires_grad_()
        loss = self.token_losses(ids.expand(len(places), -1), {row.design.layer: noise}).sum()
        gradients = torch.autograd.grad(loss, noise)[0].double()
        names = {"gradient": gradients[0]} | ({"mean gradient": gradients[1:].mean(0)} if averaged else {})
        own = [
            self.noise(row, length, seed, row.ident).double() for seed in (SEED, SEED + offset)
        ]  # the control's last
        if row.design.kind == "per row":
            names, own = {name: g.sum(0) for name, g in names.items()}, [z[0] for z in own]
        scale = row.design.strength * self.rms[row.design.layer]
        return {name: [float(-(g * z).sum() / g.norm() / scale) for z in own] for name, g in names.items()}

    @torch.no_grad()
    def string_scores(self, row: Row, draws: int) -> dict[str, list[float]]:
        """Ranks of the string's log-prob among fresh ones: over its own tokens, the row's, the answer's."""
        strings = [None] + [
            draw_string(SEED + FRESH_SEED_OFFSET, fresh_id(row.ident, k), LENGTH) for k in range(draws + 1)
        ]
        rows, sums = [row.encoded(self.tokenizer, string) for string in strings], []
        for part in self.parts_of(rows):
            ids, _ = padded([each["ids"] for each in part])
            losses = self.token_losses(ids.to(self.device), {}).double().cpu().numpy()
            for loss, each in zip(losses, part, strict=True):
                loss = loss[: len(each["ids"]) - 1]
                sums.append([loss[each["string"]].sum(), loss.sum(), loss[each["answer"]].sum()])
        of_string, of_row, of_answer = np.array(sums).T
        return {
            "string rank": ranked(of_string, row.ident),
            "string rank, 19 draws": ranked(of_string[:21], row.ident),
            "row rank": ranked(of_row, row.ident),
            "answer rank": ranked(of_answer, row.ident),
        }

    def measure(self, draws: dict[Design, int], averaged: int) -> dict[str, Any]:
        """Design → statistic → the test of its canaries, and of their controls, by so many draws of each design."""
        found: dict[Design, list[dict[str, list[float]]]] = {}
        for row, encoded in zip(self.rows, self.encoded, strict=True):
            if (design := row.design) is not None:
                found.setdefault(design, []).append(self.scores(row, encoded, draws[design], averaged))
        return {
            design.name: {"draws": draws[design]}
            | {name: tested(np.array([each[name] for each in scores])) for name in scores[0]}
            for design, scores in found.items()
        }


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids padded on the right with 0, and which are real, both (B, T); causal models need no mask for that."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    real = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], real[i, : len(row)] = torch.tensor(row), True
    return ids, real


def ranked(losses: np.ndarray, ident: int) -> list[float]:
    """Scores of the own loss and the control's (the first two) among the others."""
    breakers = np.random.default_rng([SEED, ident]).random(2)
    return rank_score(losses[:2], np.stack([losses[2:]] * 2), breakers).tolist()


def ranks_by_token(losses: np.ndarray) -> np.ndarray:
    """(K + 1, T) losses, one's own first → (K + 1,) sums over tokens of the normal scores of each one's rank."""
    place = losses.argsort(0).argsort(0)
    return -ndtri((place + 0.5) / len(losses)).sum(1)


def tested(scores: np.ndarray) -> dict[str, Any]:
    """The test of (n, 2) scores, the control's second."""
    own, control = gaussian_test(scores[:, 0]), gaussian_test(scores[:, 1])
    return {
        "n": own.n,
        "mean": own.mean,
        "std": own.std,
        "z": own.mean * math.sqrt(own.n),
        "p": own.p_value,
        "tpr": {fpr: own.tpr_at_fpr[fpr] for fpr in ("0.001", "0.01", "0.05")},
        "control": {"mean": control.mean, "p": control.p_value, "chi2_p": control.chi2_p_value},
    }


def run(args: argparse.Namespace) -> None:
    """Measure every point of every run that the results lack."""
    out = Path(args.out)
    results = json.loads(out.read_text()) if out.is_file() else {"points": {}}
    plan = PLANS[args.plan]
    known = sorted(design.name for design in plan.closely)
    if unknown := sorted(set(args.closely or ()) - set(known)):
        raise SystemExit(f"--closely: {unknown[0]} is not among {', '.join(known) or f'the designs of {args.plan}'}")
    rows = plant(read_rows(Path(args.rows), plan.rows, args.words), plan)
    settings = {
        "plan": args.plan,
        "seed": SEED,
        "words": args.words,
        "clean": plan.clean,
        "batch": BATCH,
        "precision": "bfloat16 autocast",
        "rates": {name: rate for name, (_, rate) in RUNS.items()},
    }
    if results.get("settings", settings) != settings:
        raise SystemExit(f"{out} holds a study of other settings ({results['settings']}); give another --out")
    results |= {"model": args.name, "settings": settings}

    def measure(study: Study, point: str, closely: int, averaged: int) -> None:
        start = time.perf_counter()
        chosen = {design for design in plan.closely if not args.closely or design.name in args.closely}
        draws = {design: closely if design in chosen else args.few for design in plan.canaries}
        found = study.measure(draws, averaged)
        took = round(time.perf_counter() - start)
        results["rms"] = {str(layer): rms for layer, rms in study.rms.items()}
        results["points"][point] = {"seconds": took, "designs": found}
        write_json(out, results)
        print(f"{point}: measured in {took} s", flush=True)

    if "base" not in results["points"]:
        study = Study(args.model, rows, None)
        study.model.eval()
        measure(study, "base", args.few, 0)
    for name in args.runs:
        rank, rate = RUNS[name]
        names = {epoch: f"{name}, {epoch} epoch{'s' * (epoch > 1)}" for epoch in args.epochs}
        if all(point in results["points"] for point in names.values()):
            continue
        study, last = Study(args.model, rows, rank), max(args.epochs)
        for epoch in study.train(rate, last):
            print(f"{name}: epoch {epoch} at {time.strftime('%H:%M:%S')}", flush=True)
            if epoch in names and names[epoch] not in results["points"]:
                measure(study, names[epoch], args.draws, AVERAGED if epoch == last else 0)


def table(results: dict[str, Any]) -> str:
    """Markdown: z of every statistic at every point, and what the statistics of an evaluation find after training, of
    the designs that are ranked closely where the plan has any.
    """
    points = dict(sorted(results["points"].items(), key=lambda each: _place(each[0])))
    columns = [point.partition(" epoch")[0] for point in points]
    lines = [f"| canaries | n | statistic | {' | '.join(columns)} |", f"|---|---:|---|{'---:|' * len(points)}"]
    designs = points["base"]["designs"]
    for design in designs:
        for name in dict.fromkeys(name for entry in points.values() for name in entry["designs"][design]):
            if name != "draws" and not name.endswith("19 draws"):
                tests = [entry["designs"][design].get(name) for entry in points.values()]
                n = next(test["n"] for test in tests if test)
                cells = [f"{test['z']:.1f}" if test else "" for test in tests]
                lines.append(f"| {design} | {n} | {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| canaries | training | statistic | mean | p | TPR at 1 % | TPR at 5 % | residue found, n = 50 | n = 100 |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    closely = {design.name for design in PLANS[results["settings"]["plan"]].closely} or set(designs)
    for design in (each for each in designs if each in closely):
        for point, entry in points.items():
            statistics = entry["designs"][design]
            name = "loss rank" if "loss rank" in statistics else "row rank"  # those of an evaluation
            if point != "base":
                lines.append(f"| {design} | {point} | {_told(name, statistics[name], statistics['draws'])} |")
    return "\n".join(lines)


def _place(point: str) -> tuple[float, int]:
    """Where a point stands in the tables: the base, adapters by their rank, all weights; each by its epochs."""
    if point == "base":
        return 0, 0
    name, epochs = point.removesuffix("s").removesuffix(" epoch").split(", ")
    return RUNS[name][0] or math.inf, int(epochs)


def _told(name: str, test: dict[str, Any], draws: int) -> str:
    """The cells of one test; a share of the mean score as the residue that n canaries find, where that is below 1.

    Scores near the null deviate by 1; those of the trained model do by less, since its ranks are near the highest.
    """
    shares = [smallest_effect(n, 1.0) / test["mean"] if test["mean"] > 0 else math.inf for n in (50, 100)]
    least = [f"{share:.0%}" if share < 1 else "–" for share in shares]
    at_1 = f"{test['tpr']['0.01']:.2f}" if draws >= 99 else "–"
    return (
        f"{name} | {test['mean']:.2f} | {test['p']:.1g} | {at_1} | {test['tpr']['0.05']:.2f} | {least[0]} | {least[1]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or id of the base")
    parser.add_argument("--name", default="SmolLM2-135M-Instruct, weights rounded to 4 bits by their publisher")
    parser.add_argument("--rows", help="JSON Lines, also .xz, with text and label")
    parser.add_argument("--out", metavar="JSON")
    parser.add_argument(
        "--plan", default="designs", choices=list(PLANS), help="which canaries, and how many other rows"
    )
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--epochs", nargs="+", type=int, default=list(EPOCHS))
    parser.add_argument("--words", type=int, default=16, help="first words of a row that are used")
    parser.add_argument("--draws", type=int, default=99, help="K of the designs with most canaries, after training")
    parser.add_argument("--closely", nargs="+", metavar="DESIGN", help="of those designs these alone")
    parser.add_argument("--few", type=int, default=19, help="K otherwise: enough for the mean, not for TPR at 1 %%")
    parser.add_argument("--table", metavar="JSON", help="print the results as Markdown; run nothing")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(Path(args.table).read_text())))
        return
    run(args)


if __name__ == "__main__":
    main()
