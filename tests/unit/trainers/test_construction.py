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
            METHODS["gradient_ascent"][1](
                model=build("full"), args=config("gradient_ascent", tmp_path), forget_dataset=dataset
            )


def test_text_rows_are_encoded_by_the_config(tmp_path, tokenizer, make_tiny):
    text = Dataset.from_list([{"prompt": "the film was", "completion": " good"}] * 4)
    for loss_on in ("text", "completion"):
        trainer = METHODS["gradient_ascent"][1](
            model=make_tiny("gpt2"),
            args=config("gradient_ascent", tmp_path, loss_on=loss_on, max_length=64),
            forget_dataset=text,
            processing_class=tokenizer,
        )
        row = trainer.rows["forget"][0]
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        assert (row["labels"][0] == -100) == (loss_on == "completion")


def test_a_peft_config_wraps_the_model_and_a_second_one_is_refused(tmp_path):
    from peft import LoraConfig

    from llm_unlearn.data.collators import CausalLMCollator

    lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    trainer = METHODS["kl"][1](
        model=build("full"),
        args=config("kl", tmp_path),
        forget_dataset=rows(4, 0),
        retain_dataset=rows(4, 1),
        peft_config=lora,
        data_collator=CausalLMCollator(0),
    )
    assert set(trainer.model.peft_config) == {"default", "reference"}
    with pytest.raises(InputError, match="already has an adapter"):
        METHODS["kl"][1](
            model=trainer.model,
            args=config("kl", tmp_path),
            forget_dataset=rows(4, 0),
            retain_dataset=rows(4, 1),
            peft_config=lora,
            data_collator=CausalLMCollator(0),
        )


def test_settings_that_would_lose_the_sets_or_leak_checkpoints_are_refused(tmp_path):
    with pytest.raises(InputError, match="remove_unused_columns"):
        config("kl", tmp_path, remove_unused_columns=True)
    with pytest.raises(InputError, match="hub_strategy"):
        config("kl", tmp_path, push_to_hub=True, hub_strategy="checkpoint")


def test_a_new_adapter_is_drawn_from_the_seed_and_not_from_the_global_generator(tmp_path):
    import torch
    from peft import LoraConfig

    from llm_unlearn.data.collators import CausalLMCollator

    weights = []
    for state in (1, 2):
        model = build("full")
        torch.manual_seed(state)
        lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
        trainer = METHODS["gradient_ascent"][1](
            model=model,
            args=config("gradient_ascent", tmp_path, seed=5),
            forget_dataset=rows(4, 0),
            peft_config=lora,
            data_collator=CausalLMCollator(0),
        )
        weights.append([p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_A" in n])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_one_process_with_several_gpus_is_refused(tmp_path):
    from types import SimpleNamespace

    from llm_unlearn.tasks.embedding_noise import refuse_data_parallel

    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        refuse_data_parallel(SimpleNamespace(n_gpu=2))
    refuse_data_parallel(SimpleNamespace(n_gpu=1))


def test_the_divergence_from_the_reference_starts_at_zero_in_mixed_precision(tmp_path):
    from llm_unlearn.data.collators import CausalLMCollator

    forget = rows(4, 0)
    trainer = METHODS["kl"][1](
        model=build("full"),
        forget_dataset=forget,
        retain_dataset=rows(4, 1),
        args=config(
            "kl",
            tmp_path,
            bf16=True,
            learning_rate=0.0,
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=4,
            disable_tqdm=True,
        ),
        data_collator=CausalLMCollator(0),
    )
    trainer.train()
    entry = next(e for e in trainer.state.log_history if "loss" in e)
    assert entry["loss"] + entry["forget_loss"] == pytest.approx(0.0, abs=1e-5)  # −ℓ(f) + KL, and KL = 0
