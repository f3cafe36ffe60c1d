"""The step of ``fused.py`` in compiled code: loss and gradients of ``Transformer`` in float32 on cpu.

``csrc/`` does a step in one call, without a pass over memory that it can do without:

- **A chunk of sequences** goes through a layer at a time, so that what one product leaves is in the cache for the
  next. Weights are packed once a step for each direction; a tile of a product stays in registers, and relu^2, its
  derivative and its square act on it there.
- **Attention** goes head by head, from the projection's output to the gradient by it; scores exist for 64 queries at
  a time, as far as these may look, and are made again in the backward pass.
- **Dropout, residual sum and norm** are one pass over a row, and so are the norm's gradient, its sum with that of the
  stream and the next branch's mask. Masks are kept as the 16 random bits that ``DropoutMasks`` compares.
- **Cross-entropy and its gradient** are made where the logits lie.

Where all of a model's weights fit the cache, a chunk goes all the way forward and backward before the next begins;
a larger model takes the whole batch from layer to layer, so that each weight and its gradient are fetched once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tune_dd import kernels
from tune_dd.fused import FusedStep
from tune_dd.model import RMS_EPS, Transformer
from tune_dd.regimes import ModelSpec

# Twice or four times as many cost 1 to 5 % at the benchmark shapes: less of a chunk is still in the cache.
CHUNK_ROWS = 128  # tokens
SMALL_MODEL = 1 << 20  # parameters that stay in the cache, with their gradients
_ALIGNED = 16  # every machine's vectors divide it, and the rows of a tile


def hand_written_step(model: Transformer, batch_size: int) -> NativeStep | FusedStep:
    """The faster of the two steps that can be had for this model on this machine."""
    library = kernels.load()
    if library is not None and fits(model.spec, model.vocab_size, model.context):
        return NativeStep(library, model, batch_size)
    return FusedStep(model, batch_size)


def fits(spec: ModelSpec, vocab_size: int, context: int) -> bool:
    """Whether the compiled step takes a shape: width and vocabulary in whole vectors, the context in whole tiles."""
    return not (spec.n_embd % _ALIGNED or vocab_size % _ALIGNED or context % _ALIGNED)


class NativeStep:
    """Loss and gradients of a model for one shape of batch; the interface of ``FusedStep``.

    Args:
        library: what ``kernels.load`` gave.
        model: on cpu, float32, of a shape that ``fits``; its parameters are read at every call, and their
            ``.grad`` are allocated here and overwritten by ``loss_and_gradients``.
        batch_size: B, sequences.
    """

    def __init__(self, library: ctypes.CDLL, model: Transformer, batch_size: int) -> None:
        self.library, self.model = library, model
        spec, context = model.spec, model.context
        self.sizes = step_sizes(spec, model.vocab_size, context, batch_size)
        head = spec.n_embd // spec.n_head
        padded = library.padded_head(head)
        # Neighbouring channels are a pair: (x cos + its partner times +-sin).
        self.cos, self.sin = torch.zeros(context, padded), torch.zeros(context, padded)
        self.cos[:, :head] = model.cos.repeat_interleave(2, 1)
        self.sin[:, 0:head:2], self.sin[:, 1:head:2] = model.sin, -model.sin
        self.workspace = torch.zeros(library.workspace_floats(ctypes.byref(self.sizes)))
        self.bits = torch.empty(mask_elements(self.sizes), dtype=torch.int16)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    @torch.no_grad()
    def loss_and_gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy (nats, scalar) of int64 inputs and targets (B, T); sets every ``.grad``.

        Dropout is what ``model.set_dropout`` last said.

        Raises:
            ValueError: another shape than the batch's, or a token outside the vocabulary.
        """
        if len(inputs) != self.sizes.batch:
            raise ValueError(f"{len(inputs)} sequences are not a batch of {self.sizes.batch}")
        masks = self.model.masks
        state = masks.state() if masks.active else None
        return self._run(inputs, targets, _grads(self.model), state).mean()

    @torch.no_grad()
    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every target, nats, float32 (n, T), without dropout; any number n of sequences.

        Raises:
            ValueError: sequences of another length, or a token outside the vocabulary.
        """
        missing = -len(inputs) % int(self.sizes.group)
        if missing:  # buffers have one shape: fill the last group up with sequences that are cut off again
            inputs, targets = F.pad(inputs, (0, 0, 0, missing)), F.pad(targets, (0, 0, 0, missing))
        return self._run(inputs, targets, None, None)[: len(inputs) - missing]

    def _run(self, inputs: Tensor, targets: Tensor, grads: Sequence[Tensor] | None, state: Tensor | None) -> Tensor:
        inputs, targets, masks = inputs.contiguous(), targets.contiguous(), self.model.masks
        if inputs.shape != targets.shape or inputs.shape[1] != self.sizes.context:
            raise ValueError(
                f"inputs {tuple(inputs.shape)}, targets {tuple(targets.shape)}: not {self.sizes.context} long"
            )
        needed = self.library.workspace_floats(ctypes.byref(self.sizes))
        if needed != len(self.workspace):  # torch was given another number of threads, each of which has its part
            self.workspace = torch.zeros(needed)
        losses = torch.empty(targets.shape)
        failed = self.library.run(
            ctypes.byref(self.sizes),
            _pointers(list(self.model.parameters())),
            None if grads is None else _pointers(grads),
            self.cos.data_ptr(),
            self.sin.data_ptr(),
            inputs.data_ptr(),
            targets.data_ptr(),
            losses.data_ptr(),
            len(inputs),
            None if state is None else state.data_ptr(),
            self.bits.data_ptr(),
            masks.below,
            masks.scale,
            self.workspace.data_ptr(),
        )
        if failed == -1:
            raise MemoryError("no memory for a training step")
        if failed:
            raise ValueError(f"a token is outside the vocabulary of {self.sizes.vocab}")
        return losses


def _grads(model: Transformer) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def step_sizes(spec: ModelSpec, vocab_size: int, context: int, batch_size: int) -> kernels.Sizes:
    """The shape of a step, and how its batch is divided."""
    chunk = chunk_size(batch_size, context)
    group = chunk if spec.n_params(vocab_size) <= SMALL_MODEL else batch_size
    return kernels.Sizes(spec.n_layer, spec.n_head, spec.n_embd, vocab_size, context, batch_size, group, chunk, RMS_EPS)


def mask_elements(sizes: kernels.Sizes) -> int:
    """Of all dropout masks of a step."""
    return int((1 + 2 * sizes.layers) * sizes.batch * sizes.context * sizes.width)


def native_bytes(spec: ModelSpec, vocab_size: int, context: int, batch_size: int) -> int | None:
    """What ``NativeStep`` keeps beside weights and gradients; None where it cannot be had."""
    library = kernels.load()
    if library is None or not fits(spec, vocab_size, context):
        return None
    sizes = step_sizes(spec, vocab_size, context, batch_size)
    return 4 * int(library.workspace_floats(ctypes.byref(sizes))) + 2 * mask_elements(sizes)


def chunk_size(batch_size: int, context: int) -> int:
    """The most sequences, of a divisor of the batch, that have at most ``CHUNK_ROWS`` tokens; at least one."""
    fitting = [n for n in range(1, batch_size + 1) if batch_size % n == 0 and n * context <= CHUNK_ROWS]
    return max(fitting, default=1)
