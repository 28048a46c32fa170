"""The code with which a published model is loaded, as its card shows it. The tests run it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_unlearn.reporting.model_card import Identity

FOUR_BITS = ('quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
             "bnb_4bit_use_double_quant=True,\n"
             "                                  bnb_4bit_compute_dtype=torch.{dtype})")
EIGHT_BITS = "quantization = BitsAndBytesConfig(load_in_8bit=True)"


def loading_code(identity: "Identity") -> str:
    """Python that makes `model` and, of a language model, `tokenizer`; needs no part of this package but for images."""
    section, repo = identity.recipe.model, identity.repo
    if identity.recipe.track == "vision":
        return (f"from llm_unlearn.vision.models import ImageClassifier\n\n"
                f'model = ImageClassifier.from_pretrained("{repo}").eval()  # pixels in [0, 1], (B, C, H, W) → logits')
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'
    if not identity.adapter:
        return ("from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f'model = AutoModelForCausalLM.from_pretrained("{repo}").eval()\n{tokenizer}')
    options, imports, before = [f'dtype="{section.dtype}"'], "AutoModelForCausalLM, AutoTokenizer", ""
    if identity.base_revision:
        options.append(f'revision="{identity.base_revision}"')
    if section.quantization != "none":
        options.append("quantization_config=quantization")
        imports += ", BitsAndBytesConfig"
        before = (FOUR_BITS if section.quantization == "4bit" else EIGHT_BITS).format(dtype=section.dtype) + "\n"
    head = "import torch\n" if "torch." in before else ""
    return (f"{head}from peft import PeftModel\nfrom transformers import {imports}\n\n{before}"
            f'base = AutoModelForCausalLM.from_pretrained("{identity.base}", {", ".join(options)})\n'
            f'model = PeftModel.from_pretrained(base, "{repo}").eval()\n{tokenizer}')
