"""Blocks of a causal LM: which they are, drawing them anew, stopping a forward after one."""

import pytest
import torch
from architectures import tiny_config, tiny_model
from torch import nn

from llm_unlearn.errors import InputError
from llm_unlearn.models.text_blocks import block_list
from llm_unlearn.tasks.blocks import last_blocks, mlp_output, reinitialise, stopped_after
from llm_unlearn.tasks.causal_lm import CausalLMTask

pytestmark = pytest.mark.unit

TASK = CausalLMTask()
architectures = pytest.mark.parametrize("architecture", ["gpt2", "llama"])
kinds = pytest.mark.parametrize(
    ("architecture", "lora"), [("gpt2", False), ("gpt2", True), ("llama", False), ("llama", True)]
)


def names_in(model: nn.Module, modules: list[nn.Module]) -> set[str]:
    inside = {id(p) for module in modules for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in inside}


def make_batch() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[5, 9, 17, 33, 21, 40], [6, 8, 10, 0, 0, 0]])
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


class TestLastBlocks:
    def test_gpt2_ends_with_its_norm_since_its_head_is_the_embedding(self, make_tiny):
        model = make_tiny("gpt2")
        names = names_in(model, last_blocks(model, 1))
        assert names == {
            n for n, _ in model.named_parameters() if n.startswith(("transformer.h.1.", "transformer.ln_f"))
        }

    def test_llama_ends_with_its_norm_and_its_own_head(self, make_tiny):
        model = make_tiny("llama")
        names = names_in(model, last_blocks(model, 1))
        assert names == {
            n for n, _ in model.named_parameters() if n.startswith(("model.layers.1.", "model.norm", "lm_head"))
        }

    @kinds
    def test_all_blocks_are_what_is_not_embedding(self, architecture, lora, make_tiny):
        model = make_tiny(architecture, lora=lora)
        left = {n for n, _ in model.named_parameters()} - names_in(model, last_blocks(model, 2))
        assert all(any(word in n for word in ("wte", "wpe", "embed_tokens")) for n in left) and left

    @pytest.mark.parametrize("k", [0, 3, -1])
    def test_a_k_that_the_model_does_not_have_is_refused(self, k, make_tiny):
        with pytest.raises(InputError, match=rf"^k: .*\b1 and .*\b2 blocks, is {k}$"):
            last_blocks(make_tiny("gpt2"), k)

    def test_an_architecture_without_a_list_of_blocks_is_refused(self, make_tiny):
        model = make_tiny("gpt2")
        model.config.n_layer = 7
        with pytest.raises(InputError, match="no such list where the 7 blocks"):
            block_list(model)


def test_the_mlp_output_is_the_projection_back_to_the_residual_stream(make_tiny):
    gpt2, llama = make_tiny("gpt2"), make_tiny("llama")
    assert mlp_output(gpt2.transformer.h[0]) is gpt2.transformer.h[0].mlp.c_proj
    assert mlp_output(llama.model.layers[1]) is llama.model.layers[1].mlp.down_proj


class TestReinitialise:
    @architectures
    def test_only_the_given_modules_change_and_the_seed_decides(self, architecture, make_tiny):
        states = []
        for seed in (1, 1, 2):
            model = make_tiny(architecture)
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            chosen = names_in(model, last_blocks(model, 1))
            reinitialise(model, last_blocks(model, 1), seed)
            after = dict(model.named_parameters())
            assert all(torch.equal(after[n], before[n]) for n in before.keys() - chosen)
            matrices = [n for n in chosen if after[n].ndim == 2]
            assert matrices and all(not torch.equal(after[n], before[n]) for n in matrices)
            states.append({n: after[n].detach().clone() for n in matrices})
        assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
        assert all(not torch.equal(states[0][n], states[2][n]) for n in states[0])

    def test_weights_follow_the_models_own_initialisation(self, make_tiny):
        """GPT-2: σ = 0.02, and 0.02 / √(2 · 2 layers) = 0.01 for the projections back to the residual stream."""
        model = make_tiny("gpt2")
        reinitialise(model, last_blocks(model, 1), 0)
        block = model.transformer.h[1]
        assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert torch.equal(block.ln_1.weight, torch.ones(16)) and not block.mlp.c_fc.bias.any()

    @architectures
    def test_what_was_loaded_from_disk_is_drawn_anew_too(self, architecture, make_tiny, tmp_path):
        from transformers import AutoModelForCausalLM

        make_tiny(architecture).save_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        before = mlp_output(block_list(model)[1]).weight.detach().clone()
        reinitialise(model, last_blocks(model, 1), 0)
        assert not torch.equal(mlp_output(block_list(model)[1]).weight, before)

    @architectures
    def test_an_adapter_becomes_the_identity_and_the_base_stays(self, architecture, make_tiny):
        model = make_tiny(architecture, lora=True)
        base = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}
        reinitialise(model, last_blocks(model, 2), 0)
        with torch.no_grad(), model.disable_adapter():
            bare = model(**make_batch()).logits
        with torch.no_grad():
            torch.testing.assert_close(model(**make_batch()).logits, bare)
        assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
        assert all(p.any() for n, p in model.named_parameters() if "lora_A" in n)

    def test_the_global_generator_is_left_alone(self, make_tiny):
        model = make_tiny("gpt2")
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        reinitialise(model, last_blocks(model, 2), 0)
        assert torch.equal(torch.rand(3), expected)


class TestHidden:
    @kinds
    @pytest.mark.parametrize("layer", [0, 1])
    def test_states_are_those_of_the_whole_forward(self, architecture, lora, layer, make_tiny):
        """`output_hidden_states` lists the embeddings first, and its last entry is after the final norm."""
        model, batch = make_tiny(architecture, lora=lora), make_batch()
        seen = []
        handle = block_list(model)[layer].register_forward_hook(
            lambda module, args, output: seen.append(output if isinstance(output, torch.Tensor) else output[0])
        )
        with torch.no_grad():
            listed = model(**batch, output_hidden_states=True).hidden_states
        handle.remove()
        if layer == 0:
            torch.testing.assert_close(seen[0], listed[1])
        hidden = TASK.hidden(model, batch, layer)
        expected = [seen[0][row, t] for row, length in enumerate((6, 3)) for t in range(length - 1)]
        torch.testing.assert_close(hidden.states, torch.stack(expected))
        assert hidden.example.tolist() == [0] * 5 + [1] * 2 and hidden.n_examples == 2

    @kinds
    def test_later_blocks_and_the_head_are_not_run(self, architecture, lora, make_tiny):
        model = make_tiny(architecture, lora=lora)
        TASK.supervised(model, make_batch())  # the first time it is asked what it does with rows and tokens
        TASK.hidden(model, make_batch(), 0)
        calls = []
        watched = {
            "block 0": block_list(model)[0],
            "block 1": block_list(model)[1],
            "head": model.get_output_embeddings(),
        }
        for name, module in watched.items():
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
        TASK.hidden(model, make_batch(), 0)
        assert calls == ["block 0"]
        TASK.supervised(model, make_batch())  # and all is back in its place
        assert calls == ["block 0", "block 0", "block 1", "head"]

    def test_gradients_reach_the_blocks_that_were_run_and_no_other(self, make_tiny):
        model = make_tiny("llama")
        TASK.hidden(model, make_batch(), 0).states.pow(2).sum().backward()
        assert block_list(model)[0].mlp.down_proj.weight.grad.any()
        assert block_list(model)[1].mlp.down_proj.weight.grad is None

    def test_gradient_checkpointing_gives_the_same_gradient(self, make_tiny):
        gradients = []
        for checkpointing in (False, True):
            model = make_tiny("llama").train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            TASK.hidden(model, make_batch(), 0).states.pow(2).sum().backward()
            gradients.append(block_list(model)[0].mlp.down_proj.weight.grad)
        torch.testing.assert_close(*gradients)

    def test_a_failing_forward_leaves_the_model_whole(self, make_tiny):
        model = make_tiny("gpt2")
        blocks, head = list(block_list(model)), model.get_output_embeddings()
        with pytest.raises(RuntimeError, match="on purpose"), stopped_after(model, 0):
            raise RuntimeError("on purpose")
        assert list(block_list(model)) == blocks and model.get_output_embeddings() is head
        assert head.weight is model.get_input_embeddings().weight


def test_a_mixture_of_experts_has_no_one_mlp_output():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    with pytest.raises(InputError, match="mixture of experts has no one MLP"):
        mlp_output(block_list(MixtralForCausalLM(config))[0])


@pytest.mark.parametrize("name", ["afmoe", "deepseek_v3"])
def test_the_one_shared_expert_of_a_mixture_is_not_its_mlp(name):
    with pytest.raises(InputError, match="mixture of experts has no one MLP"):
        mlp_output(block_list(tiny_model(name))[1])


@pytest.mark.parametrize("lora", ["full", "lora"])
def test_the_blocks_of_a_model_that_sees_are_those_of_its_text_model(lora):
    """As deep as its vision model, whose list comes first."""
    model = tiny_model("gemma3", lora)
    vision = model.config.vision_config.num_hidden_layers
    assert len(block_list(model)) == vision and type(block_list(model)[0]).__name__ == "Gemma3DecoderLayer"
    assert all("language_model" in n or "lm_head" in n for n in names_in(model, last_blocks(model, 1)))


def test_an_architecture_with_its_blocks_in_pieces_is_refused():
    from transformers import XLMConfig, XLMWithLMHeadModel

    with pytest.raises(InputError, match="lists of that length where the 2 blocks"):
        block_list(XLMWithLMHeadModel(XLMConfig(n_words=40, emb_dim=16, n_layers=2, n_heads=2)))


def test_several_states_per_token_are_refused():
    """DeepSeek-V4's hyper-connections carry four from block to block."""
    config = tiny_config("deepseek_v4")
    config.vocab_size = 64
    model = tiny_model("deepseek_v4", config=config)
    with pytest.raises(InputError, match="one state of 32 numbers per token"):
        TASK.hidden(model, make_batch(), 0)


def test_what_a_model_asks_of_a_block_that_is_not_run_is_answered():
    """RWKV scales every block's weights when it is first evaluated."""
    config = tiny_config("rwkv")
    config.rescale_every, config.vocab_size = 1, 64
    model = tiny_model("rwkv", config=config).train()
    with torch.no_grad():
        assert TASK.hidden(model.eval(), make_batch(), 0).states.shape == (7, 32)
