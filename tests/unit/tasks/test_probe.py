"""What a model does to its head's output is seen whatever the precision in which the model gives it."""

import pytest
import torch
from support import build

from llm_unlearn.tasks.probe import plain_head

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("change", "plain"), [(lambda z: z, True), (lambda z: 30 * torch.tanh(z / 30), False)])
def test_a_head_is_plain_in_every_precision(change, plain, dtype):
    """An engine may round the output, as FSDP2 does by accelerate's policy; Gemma 2 caps it."""
    model = build("full")
    forward = model.forward

    def engine(**inputs):
        output = forward(**inputs)
        output.logits = change(output.logits).to(dtype)
        return output

    model.forward = engine
    assert (plain_head(model, model) is not None) == plain
