"""What a trial takes of a machine's memory, from its shape."""

from __future__ import annotations

from tune_dd.trial import TrialSpec

_FLOAT = 4  # bytes
_STREAMS = 20  # buffers of one group's rows and the model's width that all layers share
# While a journal is written there are three copies of weights and both moments: the tensors, which training may go
# on without, their bytes, and the bytes of the file.
_JOURNAL_COPIES = 3 * 3


def parameter_bytes(spec: TrialSpec) -> int:
    """Weights, gradients and AdamW's two moments, float32: 16 bytes a parameter."""
    return 4 * _FLOAT * spec.n_params


def cpu_trial_bytes(spec: TrialSpec) -> int:
    """Peak bytes of a float32 trial on cpu, beside the interpreter and its libraries.

    The parameters and what hangs on them (16 bytes each), the kept buffers of the step and, while a journal is
    written, three copies of weights and moments (36 bytes each). The compiled step tells its buffers itself. Those of
    ``FusedStep`` with L layers, width D, H heads, context T,
    batch B, vocabulary V and N = G T rows of one group are, in floats:
    L N (10 D + H (T + 64) / 2) of activations, (1 + 2 L) B T D of dropout masks, 20 N D shared by the layers,
    and blocks of rows of the hidden layer and the logits.
    """
    from tune_dd.fused import QUERY_BLOCK, block_rows, group_size
    from tune_dd.native import native_bytes

    model, protocol = spec.model, spec.protocol
    journal = _JOURNAL_COPIES * _FLOAT * spec.n_params
    native = native_bytes(model, spec.vocab_size, protocol.context, protocol.batch_size)
    if native is not None:
        return parameter_bytes(spec) + journal + native
    width, context = model.n_embd, protocol.context
    rows = group_size(protocol.batch_size, context * width) * context
    scores = model.n_head * (context + min(QUERY_BLOCK, context)) / 2
    activations = model.n_layer * rows * (10 * width + scores)
    masks = (1 + 2 * model.n_layer) * protocol.tokens_per_step * width
    blocks = block_rows(rows, 4 * width) * 4 * width + block_rows(rows, spec.vocab_size) * spec.vocab_size
    floats = activations + masks + _STREAMS * rows * width + blocks
    return parameter_bytes(spec) + journal + int(_FLOAT * floats)
