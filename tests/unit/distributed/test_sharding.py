"""What is said to FSDP2 before it shards a model; the rest runs in several processes (tests/distributed)."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from llm_unlearn.distributed.sharding import keep_float32

pytestmark = pytest.mark.unit


def test_losses_and_gradients_stay_in_float32_under_fsdp2():
    low = torch.bfloat16
    plugin = SimpleNamespace(mixed_precision_policy=MixedPrecisionPolicy(low, low, low))  # as accelerate makes it
    keep_float32(SimpleNamespace(is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin)))
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
