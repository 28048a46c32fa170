"""Tasks of lm-evaluation-harness on local files: two in a group, and one whose file is not there."""

import json
from pathlib import Path

QUESTIONS = [
    {"question": "was the film good?", "choices": ["yes it was", "no"], "answer": 0},
    {"question": "and the book?", "choices": ["no", "it was long and good"], "answer": 1},
    {"question": "was it a bore", "choices": ["a bore", "good"], "answer": 0},
    {"question": "well", "choices": ["the end is weak", "a"], "answer": 1},
    {"question": "so, was the end good?", "choices": ["fine", "not so good at all"], "answer": 0},
    {"question": "nothing happens", "choices": ["bad", "music, light"], "answer": 1},
]
_TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""
_GROUP = """group: both
task: [films, more]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
metadata: {version: 1.0}
"""


def write_tasks(folder: Path) -> Path:
    """The folder, with the tasks films, more (its first two questions), lost, and the group both."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, questions in (("films", QUESTIONS), ("more", QUESTIONS[:2])):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(question) + "\n" for question in questions))
        (folder / f"{name}.yaml").write_text(_TASK.format(name=name, file=file))
    (folder / "lost.yaml").write_text(_TASK.format(name="lost", file=folder / "nowhere.jsonl"))
    (folder / "both.yaml").write_text(_GROUP)
    return folder
