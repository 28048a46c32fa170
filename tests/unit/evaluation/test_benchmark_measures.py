"""What the benchmarks ask of a model, against plain loops: one row at a time, without padding."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from benchmark_rows import WRITERS

from llm_unlearn.config.benchmark_fields import BenchmarkSection
from llm_unlearn.config.evaluation_fields import FluencySection
from llm_unlearn.data.benchmarks.benchmark_sets import measured_rows
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.benchmarks.measured_files import read_measured, write_measured
from llm_unlearn.evaluation.benchmarks.measures import Benchmark, few_shot, multiple_choice
from llm_unlearn.evaluation.benchmarks.readings import CERTAIN_OF_NOTHING, Asking, read_tokens
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.metrics.benchmarks.benchmark_result import BenchmarkResult, benchmark_result
from llm_unlearn.models.make import make_model, train_tokenizer

pytestmark = pytest.mark.unit

TEMPLATE = "Question: {text}\nAnswer: "
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 512}
SHARP = {"tie_word_embeddings": False, "initializer_range": 0.5}  # likeliest tokens are no accident of rounding


class Bare(TextEvaluator):
    """An evaluator without the sets of a run."""

    def __post_init__(self) -> None:
        self.encoded = {}


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"Question: Where was Ada number {i} born?\nAnswer: It was in Rome that it happened." for i in range(40)]
    return train_tokenizer(texts, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model({**GPT2, **SHARP}, tokenizer, seed=1).eval()


@pytest.fixture
def evaluator(tokenizer):
    encoding = Encoding(max_length=64, loss_on="text")
    return Bare(sets={}, manifest={}, batch_size=3, tokenizer=tokenizer, encoding=encoding, template=TEMPLATE)


@pytest.fixture
def benchmark(tmp_path):
    def make(name: str) -> Benchmark:
        section = BenchmarkSection(name=name, folder=str(WRITERS[name](tmp_path / name)))
        return Benchmark(name, section.forgotten, measured_rows(section), 5, 64)

    return make


def log_probs(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)


def by_hand(model, tokenizer, question, answer):
    """(mean loss of answer and EOS, whether each token of the answer alone is the likeliest)."""
    prompt = TEMPLATE.replace("{text}", question)
    ids = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
    start = len(tokenizer(prompt)["input_ids"])
    while ids[:start] != tokenizer(prompt)["input_ids"][:start]:
        start -= 1
    said = log_probs(model, ids)
    losses = [-said[t - 1, ids[t]].item() for t in range(start, len(ids))]
    return np.mean(losses), [int(said[t - 1].argmax()) == ids[t] for t in range(start, len(ids) - 1)]


def test_answers_are_read_as_one_by_one(model, tokenizer, evaluator):
    pairs = [("Who?", "Ada was born in Rome."), ("Where was Bo number 3 born?", "No."), ("A", "It was in Rome that.")]
    read = Asking.as_trained(evaluator).answers(model, pairs)
    hits, example = read.hits
    for i, pair in enumerate(pairs):
        loss, right = by_hand(model, tokenizer, *pair)
        assert read.mean_nll[i] == pytest.approx(loss, rel=1e-5)
        assert hits[example == i].tolist() == right


@pytest.mark.parametrize("plain", [True, False])
def test_replies_in_padded_batches_are_those_one_by_one(model, tokenizer, evaluator, plain):
    asking = (Asking.plain if plain else Asking.as_trained)(evaluator)
    pairs = [("Who?", "x"), ("Where was Bo number 3 born, and why there?", "x"), ("A", "x"), ("Number 7 is", "x")]
    together = asking.replies(model, pairs, 8)
    alone = Asking(replace(evaluator, batch_size=1), asking.encoding, asking.template)
    assert together == [alone.replies(model, [pair], 8)[0] for pair in pairs]
    assert len(set(together)) > 1


def test_what_does_not_fit_the_model_is_refused_and_never_cut(model, evaluator):
    asking = Asking.plain(evaluator)
    with pytest.raises(InputError, match="takes at most 512"):
        asking.replies(model, [("word " * 200, "x")], 400)
    long = "word " * 60  # more than the evaluator's 64 tokens
    read = asking.answers(model, [(long, "Rome")])
    assert read.mean_nll[0] > 0 and len(asking.encoding.alone(evaluator.tokenizer, long)) > 64


def test_a_model_that_fell_apart_is_certain_of_nothing(model, tokenizer, evaluator):
    rows, broken = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}], make_model(GPT2, tokenizer, seed=1)
    assert (read_tokens(evaluator, broken, rows, [0]).nll < 20).all()
    with torch.no_grad():
        broken.get_input_embeddings().weight.fill_(float("nan"))
    read = read_tokens(evaluator, broken, rows, [0])
    assert (read.nll == CERTAIN_OF_NOTHING).all()


def test_tofu_by_hand(model, tokenizer, evaluator, benchmark):
    pytest.importorskip("rouge_score.rouge_scorer")
    asked = benchmark("tofu")
    values = asked.values(evaluator, model)
    row = asked.rows["forget"][2]
    loss = {answer: by_hand(model, tokenizer, row["question"], answer)[0]
            for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"])}  # fmt: skip
    wrong = np.array([loss[answer] for answer in row["perturbed_answer"]])
    right = np.exp(-loss[row["paraphrased_answer"]])
    assert values["forget_probability"][2] == pytest.approx(np.exp(-loss[row["answer"]]), rel=1e-4)
    assert values["forget_truth_ratio"][2] == pytest.approx(np.exp(-wrong.mean()) / right, rel=1e-4)
    assert values["forget_truth_ratio_paper"][2] == pytest.approx(np.exp(-wrong).mean() / right, rel=1e-4)
    row = asked.rows["world_facts"][1]
    p = [np.exp(-by_hand(model, tokenizer, row["question"], a)[0]) for a in (row["answer"], *row["perturbed_answer"])]
    assert values["world_facts_probability"][1] == pytest.approx(p[0] / sum(p), rel=1e-4)
    found = benchmark_result("tofu", "forget10", values, values)
    assert found.forget_quality.p_value == 1 and found.scores["forget_rouge"].n == 6
    assert BenchmarkResult.from_json(found.to_json(), "x") == found


def test_muse_by_hand(model, tokenizer, evaluator, benchmark):
    pytest.importorskip("rouge_score.rouge_scorer")
    asked = benchmark("muse")
    values = asked.values(evaluator, model)
    ids = tokenizer(asked.rows["privleak_forget"][1]["text"])["input_ids"][:64]
    said = log_probs(model, ids)
    tokens = np.sort([said[t - 1, ids[t]].item() for t in range(1, len(ids))])
    assert values["privleak_forget"][1] == pytest.approx(tokens[: int(0.4 * len(tokens))].mean(), rel=1e-4)
    found = benchmark_result("muse", "news", values, values)
    assert found.privleak is None or found.privleak.value == 0
    assert {*found.scores} >= {"forget_verbmem", "forget_knowmem", "retain_knowmem", "forget_exact_memorization"}


@pytest.mark.parametrize(("name", "rows"), [("tofu", "forget"), ("muse", "verbmem")])
def test_fluency_is_of_what_is_said_on_forget_rows_and_needs_no_reference(model, evaluator, benchmark, name, rows):
    pytest.importorskip("rouge_score.rouge_scorer")

    class Reads(Bare):
        def fluency_of(self, texts):
            return np.array([1 / (1 + len(text)) for text in texts])

    asked, section = benchmark(name), FluencySection(classifier="c", label="clean")
    without = asked.values(evaluator, model)
    values = asked.values(Reads(**{**vars_of(evaluator), "fluency": section}), model)
    assert len(values["forget_fluency"]) == len(asked.rows[rows])
    found = benchmark_result(name, asked.split, values, without)
    assert found.scores["forget_fluency"].value == pytest.approx(values["forget_fluency"].mean())
    assert set(values) - set(without) == {"forget_fluency"}


def vars_of(evaluator):
    return {each.name: getattr(evaluator, each.name) for each in fields(evaluator) if each.init}


def test_few_shot_prompts_are_muses():
    shots = "".join(few_shot(q, a) for q, a in (("One?", "1"), ("Two?", "2")))
    assert shots + few_shot("Three?") == (
        "Question: One?\nAnswer: 1\n\nQuestion: Two?\nAnswer: 2\n\nQuestion: Three?\nAnswer: "
    )


def test_wmdp_by_hand(model, tokenizer, evaluator, benchmark):
    asked = benchmark("wmdp")
    values = asked.values(evaluator, model)
    for i, row in enumerate(asked.rows["questions"]):
        prompt = multiple_choice(row["question"], row["choices"], "cybersecurity")
        scores = []
        for letter in "ABCD":
            ids, start = tokenizer(f"{prompt} {letter}")["input_ids"], len(tokenizer(prompt)["input_ids"])
            said = log_probs(model, ids)
            scores.append(sum(said[t - 1, ids[t]].item() for t in range(start, len(ids))))
        assert values["accuracy"][i] == (int(np.argmax(scores)) == row["answer"])
        assert values["probability"][i] == pytest.approx(np.exp(scores[row["answer"]]) / np.exp(scores).sum(), rel=1e-4)
    spoiled = {"questions": [*asked.rows["questions"], {"question": "q", "choices": ["a"], "answer": 0}]}
    with pytest.raises(InputError, match="equally many choices"):
        replace(asked, rows=spoiled).values(evaluator, model)


def test_a_reference_of_other_rows_or_of_another_benchmark_is_refused(tmp_path, benchmark):
    asked, path = benchmark("wmdp"), tmp_path / "retrained.json"
    values = {"accuracy": np.array([1.0, 0.0]), "probability": np.array([0.5, 0.25])}
    write_measured(path, asked, values)
    kept = read_measured(path, asked)
    assert {name: own.tolist() for name, own in kept.items()} == {name: own.tolist() for name, own in values.items()}
    with pytest.raises(InputError, match=r"retrained.json: field 'split' is 'cyber', expected 'bio'"):
        read_measured(path, replace(asked, split="bio"))
    with pytest.raises(InputError, match="reference: 2 rows of accuracy, the model has 3"):
        benchmark_result("wmdp", "cyber", {**values, "accuracy": np.zeros(3)}, kept)
    path.write_text('{"benchmark": "wmdp", "split": "cyber"}')
    with pytest.raises(InputError, match="field 'values'"):
        read_measured(path, asked)
