"""How much memory a training or unlearning step takes, known without weights, data or a GPU.

A step is run on tensors that have shapes and no contents (torch's FakeTensor), by the code that runs it in earnest: the
model's own forward and backward, the methods' own losses. ledger.py adds up what is held at each moment; dataless.py
makes the models; steps.py runs a step; estimate.py adds what is not seen there (the optimizer, what an engine gathers).
"""
