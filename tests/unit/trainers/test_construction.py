"""What a trainer asks of whoever constructs it."""

import pytest
from datasets import Dataset
from support import build, rows

from llm_unlearn.errors import InputError
from llm_unlearn.trainers import METHODS


def config(method: str, folder, **options):
    return METHODS[method][0](output_dir=str(folder), use_cpu=True, report_to="none", **options)


def test_text_or_a_missing_collator_asks_for_the_tokenizer(tmp_path):
    text = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    tokens = rows(4, 0)
    for dataset in (text, tokens):
        with pytest.raises(InputError, match="processing_class"):
            METHODS["gradient_ascent"][1](model=build("full"), args=config("gradient_ascent", tmp_path),
                                          forget_dataset=dataset)


def test_text_rows_are_encoded_by_the_config(tmp_path, tokenizer, make_tiny):
    text = Dataset.from_list([{"prompt": "the film was", "completion": " good"}] * 4)
    for loss_on in ("text", "completion"):
        trainer = METHODS["gradient_ascent"][1](
            model=make_tiny("gpt2"), args=config("gradient_ascent", tmp_path, loss_on=loss_on, max_length=64),
            forget_dataset=text, processing_class=tokenizer)
        row = trainer.rows["forget"][0]
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        assert (row["labels"][0] == -100) == (loss_on == "completion")


def test_a_peft_config_wraps_the_model_and_a_second_one_is_refused(tmp_path):
    from peft import LoraConfig

    from llm_unlearn.data.collators import CausalLMCollator

    lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    trainer = METHODS["kl"][1](model=build("full"), args=config("kl", tmp_path), forget_dataset=rows(4, 0),
                               retain_dataset=rows(4, 1), peft_config=lora, data_collator=CausalLMCollator(0))
    assert set(trainer.model.peft_config) == {"default", "reference"}
    with pytest.raises(InputError, match="already has an adapter"):
        METHODS["kl"][1](model=trainer.model, args=config("kl", tmp_path), forget_dataset=rows(4, 0),
                         retain_dataset=rows(4, 1), peft_config=lora, data_collator=CausalLMCollator(0))


def test_settings_that_would_lose_the_halves_or_leak_checkpoints_are_refused(tmp_path):
    with pytest.raises(InputError, match="remove_unused_columns"):
        config("kl", tmp_path, remove_unused_columns=True)
    with pytest.raises(InputError, match="hub_strategy"):
        config("kl", tmp_path, push_to_hub=True, hub_strategy="checkpoint")
