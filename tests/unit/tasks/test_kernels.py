"""Kernels as a compiler would take them; test_head.py holds them to the losses."""

import pytest
import torch

from llm_unlearn.tasks.kernels import kl_kernel, nll_kernel

pytestmark = pytest.mark.unit

KERNELS = {"nll": nll_kernel, "kl": kl_kernel(), "distillation at 2": kl_kernel(2.0, 0.7, 0.3)}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("differentiate", [True, False])
def test_a_compiled_kernel_gives_the_same(name, differentiate):
    """The graph that a compiler is given, with all that is written in place; how it is lowered is the compiler's own.
    scripts/gpu_check.py measures it on a GPU.
    """
    torch.manual_seed(0)
    kernel, compiled = KERNELS[name], torch.compile(KERNELS[name], backend="aot_eager")
    for n in (9, 4):  # the last chunk is shorter
        logits, labels, reference = torch.randn(n, 50), torch.randint(0, 50, (n,)), torch.randn(n, 50)
        ours = compiled(logits.clone(), labels, reference.clone(), differentiate)
        for found, right in zip(ours, kernel(logits, labels, reference, differentiate), strict=True):
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
