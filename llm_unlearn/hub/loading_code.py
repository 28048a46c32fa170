"""The code with which a published model is loaded, as its card shows it. The tests run it."""

FOUR_BITS = (
    'quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
    "bnb_4bit_use_double_quant=True,\n"
    "                                  bnb_4bit_compute_dtype=torch.{dtype})"
)
EIGHT_BITS = "quantization = BitsAndBytesConfig(load_in_8bit=True)"


def loading_code(
    repo: str,
    base: str | None = None,
    *,
    base_revision: str | None = None,
    dtype: str | None = None,
    quantization: str = "none",
    images: bool = False,
) -> str:
    """Python that makes `model` and, of a language model, `tokenizer`; needs this package for images alone.

    Args:
        repo: the published model, owner/name.
        base: the model that an adapter sits on; None for a full model.
        base_revision: the revision of that base; None for the default one of the hub.
        dtype: the torch type in which the base is loaded, such as "bfloat16"; None for the default of transformers.
            With 4 bits it is needed, as the type of the products.
        quantization: how the base is quantised: "none", "4bit" or "8bit".
        images: whether the model is a classifier of images; the arguments on a base are then ignored.
    """
    if images:
        return (
            "from llm_unlearn.vision.classifiers import ImageClassifier\n\n"
            f'model = ImageClassifier.from_pretrained("{repo}").eval()  # pixels in [0, 1], (B, C, H, W) → logits'
        )
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'
    if base is None:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{repo}").eval()\n{tokenizer}'
        )
    options = [f'"{base}"'] + [f'dtype="{dtype}"'] * bool(dtype) + [f'revision="{base_revision}"'] * bool(base_revision)
    imports, before, head = "AutoModelForCausalLM, AutoTokenizer", "", ""
    if quantization != "none":
        options.append("quantization_config=quantization")
        imports += ", BitsAndBytesConfig"
        before = (FOUR_BITS if quantization == "4bit" else EIGHT_BITS).format(dtype=dtype) + "\n"
        head = "import torch\n" if quantization == "4bit" else ""
    return (
        f"{head}from peft import PeftModel\nfrom transformers import {imports}\n\n{before}"
        f"base = AutoModelForCausalLM.from_pretrained({', '.join(options)})\n"
        f'model = PeftModel.from_pretrained(base, "{repo}").eval()\n{tokenizer}'
    )
