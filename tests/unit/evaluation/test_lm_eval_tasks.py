"""Tasks of lm-evaluation-harness against log-probabilities added up by hand, on every kind of model that a run has."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluators import TEXTS
from harness_tasks import QUESTIONS, write_tasks
from support import quantised, with_adapter

from llm_unlearn.config.evaluation_fields import LmEvalSection
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation import lm_eval_tasks
from llm_unlearn.evaluation.arithmetic import Arithmetic
from llm_unlearn.evaluation.lm_eval_tasks import check_tasks, lm_eval_scores
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.metrics.task_scores import TaskScore
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.tasks.probe import pads_left

pytestmark = pytest.mark.unit

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 128, "initializer_range": 0.5}


class Bare(TextEvaluator):
    """An evaluator without the sets of a run."""

    def __post_init__(self) -> None:
        self.encoded = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("lm_eval", reason="the extra [lm-eval] is not installed")
    return str(write_tasks(tmp_path_factory.mktemp("tasks")))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"Question: {text}\nAnswer: good" for text in TEXTS * 8], 300)


@pytest.fixture
def evaluator(tokenizer):
    return Bare(sets={}, manifest={}, batch_size=4, tokenizer=tokenizer, encoding=Encoding(max_length=64))


def adapter_with_its_own_head(model):
    from peft import LoraConfig, get_peft_model

    own = get_peft_model(
        model, LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, weight in own.named_parameters():
            if "modules_to_save" in name:
                weight.add_(torch.randn_like(weight))
    return own


KINDS = {"full": lambda m: m, "lora": with_adapter, "own head": adapter_with_its_own_head,
         "qlora": lambda m: with_adapter(quantised(m))}  # fmt: skip


def by_hand(model, tokenizer, questions=QUESTIONS):
    """Which questions are answered rightly: by the log-probability of each choice, and by that per letter."""
    hits = []
    for row in questions:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        scores = []
        for choice in row["choices"]:
            ids = tokenizer(f"Question: {row['question']}\nAnswer: {choice}")["input_ids"]
            assert ids[: len(prompt)] == prompt
            with torch.no_grad():
                said = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
            scores.append(sum(said[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))))
        per_letter = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        hits.append([int(np.argmax(each) == row["answer"]) for each in (scores, per_letter)])
    return np.array(hits).T


@pytest.mark.parametrize("kind", list(KINDS))
def test_figures_are_those_added_up_by_hand(kind, folder, tokenizer, evaluator):
    model = KINDS[kind](make_model(GPT2, tokenizer, seed=3)).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    side = tokenizer.padding_side
    found = lm_eval_scores(evaluator, model, LmEvalSection(tasks=["films"], folder=folder))["films"]
    assert model.training and tokenizer.padding_side == side and (found.n, found.shots, found.version) == (6, 0, "2.0")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    for name, hits in zip(("acc", "acc_norm"), by_hand(model.eval(), tokenizer), strict=True):
        p = hits.mean()
        assert found.scores[name].value == pytest.approx(p)
        assert found.scores[name].stderr == pytest.approx(np.sqrt(p * (1 - p) / (len(hits) - 1)))
        assert found.scores[name].better == "high"


def test_a_second_model_is_asked_the_same_with_the_same_examples(folder, tokenizer, evaluator):
    section = LmEvalSection(tasks=["films"], folder=folder, limit=4, num_fewshot=2, batch_size=1)
    models = [make_model(GPT2, tokenizer, seed=seed) for seed in (3, 4, 3)]
    first, other, again = (lm_eval_scores(evaluator, model, section)["films"] for model in models)
    assert first == again and first.n == other.n == 4 and first.shots == 2


def test_a_group_has_the_mean_over_all_rows_and_its_parts_say_whose_they_are(folder, tokenizer, evaluator):
    model = make_model(GPT2, tokenizer, seed=3).eval()
    found = lm_eval_scores(evaluator, model, LmEvalSection(tasks=["both"], folder=folder))
    hits = [by_hand(model, tokenizer, questions)[0] for questions in (QUESTIONS, QUESTIONS[:2])]
    assert found["both"].scores["acc"].value == pytest.approx(np.concatenate(hits).mean())
    assert {name: task.part_of for name, task in found.items()} == {"both": None, "films": "both", "more": "both"}
    assert found["both"].n == 8 and found["both"].shots is None


def test_models_compute_in_the_precision_of_the_run(folder, tokenizer, evaluator):
    seen = []
    model = make_model(GPT2, tokenizer, seed=3)
    pads_left(model, tokenizer.pad_token_id)  # asked once, and in float32
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    lm_eval_scores(
        replace(evaluator, arithmetic=Arithmetic(bf16=True)), model, LmEvalSection(tasks=["more"], folder=folder)
    )
    assert set(seen) == {torch.bfloat16}


def test_processes_share_the_requests_and_each_gets_all_answers(folder, tokenizer, evaluator, monkeypatch):
    model, section = make_model(GPT2, tokenizer, seed=3), LmEvalSection(tasks=["films"], folder=folder)
    alone = lm_eval_scores(evaluator, model, section)
    asked: dict[int, list] = {}

    def merged(self, part):
        if isinstance(part, list):
            asked[self.rank] = part
            return [asked.get(rank, []) for rank in range(self.count)]
        return [part] * self.count

    monkeypatch.setattr(Processes, "merged", merged)
    for rank in (2, 1, 0):  # the main one last, when it has the answers of all
        if rank:
            lm = lm_eval_tasks._wrapper()(model, replace(evaluator, processes=Processes(rank, 3)), 4, True)
            lm.loglikelihood(requests_of(folder))
        else:
            found = lm_eval_scores(replace(evaluator, processes=Processes(0, 3)), model, section)
    assert [len(asked[rank]) for rank in range(3)] == [4, 4, 4] and found == alone


def requests_of(folder):
    task = lm_eval_tasks._tasks(LmEvalSection(tasks=["films"], folder=folder))["tasks"]["films"]
    task.build_all_requests(rank=0, world_size=1)
    return task.instances


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"tasks": ["films", "lost"]}, ["tasks: lost", "nowhere.jsonl", "take it out"]),
        ({"tasks": ["both", "films"]}, ["films", "once"]),
        ({"tasks": ["films"], "folder": "nowhere"}, ["folder: nowhere"]),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_by_name(folder, section, words):
    with pytest.raises(InputError) as error:
        check_tasks(LmEvalSection(**{"folder": folder, **section}))
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow  # looks through all tasks of the harness
def test_unknown_tasks_and_data_that_is_not_cached_are_told_apart(folder, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'wmdp_boi' is no task.*wmdp_bio"):
        check_tasks(LmEvalSection(tasks=["wmdp_boi"]))
    with pytest.raises(InputError, match=r"tasks: wmdp_bio cannot be loaded .*cais/wmdp.*network"):
        check_tasks(LmEvalSection(tasks=["wmdp_bio"]))


def test_without_the_package_the_extra_is_named(monkeypatch):
    lm_eval_tasks._harness.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"evaluate\.lm_eval: .*\[lm-eval\]"):
        check_tasks(LmEvalSection(tasks=["films"]))
    lm_eval_tasks._harness.cache_clear()


def test_a_score_without_an_error_or_a_direction_has_none():
    from llm_unlearn.metrics.task_scores import task_scores

    entry = {"alias": "t", "sample_len": 3, "word_perplexity,none": 2.5, "word_perplexity_stderr,none": "N/A",
             "em,strict": 1.0, "em_stderr,strict": 0.0}  # fmt: skip
    found = task_scores({"results": {"t": entry, "empty": {"alias": "e"}}, "higher_is_better": {"t": {"em": None}}})
    assert list(found) == ["t"] and found["t"].scores == {
        "word_perplexity": TaskScore(value=2.5, stderr=None, better=None),
        "em (strict)": TaskScore(value=1.0, stderr=0.0, better=None),
    }
