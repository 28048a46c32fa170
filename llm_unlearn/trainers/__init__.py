"""One file per unlearning method. METHODS is the one list of them."""

from llm_unlearn.trainers.altpo import AltPOConfig, AltPOTrainer
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.ce_u import CEUConfig, CEUTrainer
from llm_unlearn.trainers.cf_k import CFKConfig, CFKTrainer
from llm_unlearn.trainers.crow import CrowConfig, CrowTrainer
from llm_unlearn.trainers.dpo import DPOConfig, DPOTrainer
from llm_unlearn.trainers.eu_k import EUKConfig, EUKTrainer
from llm_unlearn.trainers.grad_diff import GradDiffConfig, GradDiffTrainer
from llm_unlearn.trainers.gradient_ascent import GradientAscentConfig, GradientAscentTrainer
from llm_unlearn.trainers.gradient_descent import GradientDescentConfig, GradientDescentTrainer
from llm_unlearn.trainers.gu_project import GUProjectConfig, GUProjectTrainer
from llm_unlearn.trainers.idk_sft import IdkSFTConfig, IdkSFTTrainer
from llm_unlearn.trainers.kfac_step import KFACStepConfig, KFACStepTrainer
from llm_unlearn.trainers.kl import KLConfig, KLTrainer
from llm_unlearn.trainers.neggrad_plus import NegGradPlusConfig, NegGradPlusTrainer
from llm_unlearn.trainers.noisy_gradient_descent import NoisyGradientDescentConfig, NoisyGradientDescentTrainer
from llm_unlearn.trainers.npo import NPOConfig, NPOTrainer
from llm_unlearn.trainers.osft import OSFTConfig, OSFTTrainer
from llm_unlearn.trainers.pdu import PDUConfig, PDUTrainer
from llm_unlearn.trainers.reset_distill import ResetDistillConfig, ResetDistillTrainer
from llm_unlearn.trainers.rewind import RewindConfig, RewindTrainer
from llm_unlearn.trainers.rmu import RMUConfig, RMUTrainer
from llm_unlearn.trainers.satimp import SatImpConfig, SatImpTrainer
from llm_unlearn.trainers.scrub import ScrubConfig, ScrubTrainer
from llm_unlearn.trainers.simnpo import SimNPOConfig, SimNPOTrainer
from llm_unlearn.trainers.sink import SinkConfig, SinkTrainer
from llm_unlearn.trainers.ssd import SSDConfig, SSDTrainer
from llm_unlearn.trainers.task_arithmetic import TaskArithmeticConfig, TaskArithmeticTrainer
from llm_unlearn.trainers.undial import UndialConfig, UndialTrainer
from llm_unlearn.trainers.undo import UndoConfig, UndoTrainer
from llm_unlearn.trainers.unlearn_config import UnlearnConfig
from llm_unlearn.trainers.wga import WGAConfig, WGATrainer

METHODS: dict[str, tuple[type[UnlearnConfig], type[UnlearnTrainer]]] = {
    # the paper's eight (arXiv 2406.17216)
    "gradient_descent": (GradientDescentConfig, GradientDescentTrainer),
    "noisy_gradient_descent": (NoisyGradientDescentConfig, NoisyGradientDescentTrainer),
    "gradient_ascent": (GradientAscentConfig, GradientAscentTrainer),
    "eu_k": (EUKConfig, EUKTrainer),
    "cf_k": (CFKConfig, CFKTrainer),
    "scrub": (ScrubConfig, ScrubTrainer),
    "neggrad_plus": (NegGradPlusConfig, NegGradPlusTrainer),
    "ssd": (SSDConfig, SSDTrainer),
    # of language models
    "grad_diff": (GradDiffConfig, GradDiffTrainer),
    "kl": (KLConfig, KLTrainer),
    "npo": (NPOConfig, NPOTrainer),
    "simnpo": (SimNPOConfig, SimNPOTrainer),
    "dpo": (DPOConfig, DPOTrainer),
    "rmu": (RMUConfig, RMUTrainer),
    "undial": (UndialConfig, UndialTrainer),
    "wga": (WGAConfig, WGATrainer),
    "satimp": (SatImpConfig, SatImpTrainer),
    "ce_u": (CEUConfig, CEUTrainer),
    "task_arithmetic": (TaskArithmeticConfig, TaskArithmeticTrainer),
    "altpo": (AltPOConfig, AltPOTrainer),
    "idk_sft": (IdkSFTConfig, IdkSFTTrainer),
    "osft": (OSFTConfig, OSFTTrainer),
    "pdu": (PDUConfig, PDUTrainer),
    "gu_project": (GUProjectConfig, GUProjectTrainer),
    "crow": (CrowConfig, CrowTrainer),
    "undo": (UndoConfig, UndoTrainer),
    "sink": (SinkConfig, SinkTrainer),
    "kfac_step": (KFACStepConfig, KFACStepTrainer),
    # baselines that start before the poison
    "rewind": (RewindConfig, RewindTrainer),
    "reset_distill": (ResetDistillConfig, ResetDistillTrainer),
}
