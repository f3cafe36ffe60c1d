"""A training step written out by hand: loss and gradients of ``Transformer`` in float32 on cpu.

It computes what ``Transformer.loss`` and autograd compute, to rounding (tests compare both), but does
every piece in place in buffers that live as long as the trial. On one core the model sizes of this
project spend most of an autograd step outside matrix products: on passes over memory and on faults of
freshly mapped pages (a 4 MB logits buffer costs 6 ms new and 0.7 ms kept). What is done about it:

- **Buffers kept.** No tensor larger than a row vector is allocated in a step.
- **Rows in blocks.** MLP and head work on blocks of rows small enough for the cache, so that relu^2 and
  softmax find their input there.
- **Attention without its maximum.** Queries and keys are normalised, so a score is at most sqrt(d) and
  exp cannot overflow; the division by the sum moves from T x T scores to T x d outputs. Queries go in
  blocks that stop at their last key, so half of what is above the diagonal is never computed.
- **Rotation as one complex product**, in place.
- **Dropout and residual sum in one pass**, and without dropout the sum happens inside the product.

Notation: N = B T rows, D width, H heads of width d, x the residual stream (N, D); a hat is a normalised
tensor; ``grad`` prefixes are derivatives of the mean loss times N (the 1/N is applied in the head).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tune_dd.model import RMS_EPS, Block, Transformer

BLOCK_ELEMENTS = 1 << 17  # of one block of MLP or head activations: 512 KiB, a part of the second-level cache
QUERY_BLOCK = 64


@dataclass
class _Layer:
    """What one layer's forward pass leaves for its backward pass."""

    attn_in: Tensor  # normalised stream (N, D)
    attn_scale: Tensor  # its inverse rms (N, 1)
    heads: Tensor  # rotated and normalised queries and keys, each times d^-1/4 (2, B, H, T, d)
    heads_scale: Tensor  # their inverse rms, with that factor (B, T, 2, H)
    values: Tensor  # (B, H, T, d)
    weights: list[Tensor]  # exp of scores per block of queries (B H, block, keys), not divided by their sum
    inverse_sum: Tensor  # 1 / that sum (B, H, T)
    attn_mixed: Tensor  # attention output before its projection (N, D)
    attn_mask: Tensor  # dropout (N, D)
    mlp_in: Tensor  # normalised stream (N, D)
    mlp_scale: Tensor
    mlp_relu: Tensor  # relu of the hidden layer (N, 4 D)
    mlp_mask: Tensor


class FusedStep:
    """Loss and gradients of a model for one shape of batch.

    Args:
        model: on cpu, float32; its parameters are read at every call, and their ``.grad`` are
            allocated here and overwritten by ``loss_and_gradients``.
        batch_size: B, sequences.
    """

    def __init__(self, model: Transformer, batch_size: int) -> None:
        self.model = model
        spec, context = model.spec, model.context
        self.batch, self.context, self.n_head = batch_size, context, spec.n_head
        self.width, self.head_dim = spec.n_embd, spec.n_embd // spec.n_head
        self.rows = rows = batch_size * context
        width, heads = self.width, (batch_size, spec.n_head, context, self.head_dim)
        edges = [*range(0, context, QUERY_BLOCK), context]
        self.query_blocks = list(itertools.pairwise(edges))
        self.causal = torch.ones(QUERY_BLOCK, QUERY_BLOCK).tril_()
        # One complex factor per pair of neighbouring channels, repeated for all heads of queries and keys.
        self.rotation = torch.complex(model.cos, -model.sin).repeat(1, 2 * spec.n_head)
        self.layers = [
            _Layer(
                attn_in=torch.empty(rows, width),
                attn_scale=torch.empty(rows, 1),
                heads=torch.empty(2, *heads),
                heads_scale=torch.empty(batch_size, context, 2, spec.n_head),
                values=torch.empty(heads),
                weights=self._score_buffers(),
                inverse_sum=torch.empty(heads[:3]),
                attn_mixed=torch.empty(rows, width),
                attn_mask=torch.empty(rows, width),
                mlp_in=torch.empty(rows, width),
                mlp_scale=torch.empty(rows, 1),
                mlp_relu=torch.empty(rows, 4 * width),
                mlp_mask=torch.empty(rows, width),
            )
            for _ in range(spec.n_layer)
        ]
        self.stream = torch.empty(rows, width)
        self.embedded, self.embedded_scale = torch.empty(rows, width), torch.empty(rows, 1)
        self.embedded_mask = torch.empty(rows, width)
        self.final, self.final_scale = torch.empty(rows, width), torch.empty(rows, 1)
        self.grad_stream, self.grad_branch = torch.empty(rows, width), torch.empty(rows, width)
        self.branch, self.scratch = torch.empty(rows, width), torch.empty(rows, width)
        self.qkv, self.squares = torch.empty(rows, 3 * width), torch.empty(rows, 2 * width)
        self.mixed, self.grad_mixed = torch.empty(heads), torch.empty(heads)
        self.grad_heads, self.grad_values = torch.empty(2, *heads), torch.empty(heads)
        self.grad_weights = self._score_buffers()
        self.mlp_rows = _block_rows(rows, 4 * width)
        self.hidden = torch.empty(self.mlp_rows, 4 * width)
        self.head_rows = _block_rows(rows, model.vocab_size)
        self.logits = torch.empty(self.head_rows, model.vocab_size)
        self.target_p = torch.empty(rows, 1)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def _score_buffers(self) -> list[Tensor]:
        return [torch.empty(self.batch * self.n_head, hi - lo, hi) for lo, hi in self.query_blocks]

    @torch.no_grad()
    def loss_and_gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy (nats, scalar) of int64 inputs and targets (B, T); sets every ``.grad``.

        Dropout is what ``model.set_dropout`` last said.
        """
        self._forward(inputs.reshape(-1))
        loss = self._head_backward(targets.reshape(-1, 1))
        for block, layer in zip(reversed(list(self.model.blocks)), reversed(self.layers), strict=True):
            assert isinstance(block, Block)
            self._mlp_backward(block, layer)
            self._attention_backward(block, layer)
        self._embedding_backward(inputs.reshape(-1))
        return loss

    @torch.no_grad()
    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every target, nats, float32, of at most B sequences (n, T)."""
        n_sequences = len(inputs)
        if n_sequences < self.batch:  # buffers have one shape: fill up with sequences that are cut off again
            fill = (0, 0, 0, self.batch - n_sequences)
            inputs, targets = F.pad(inputs, fill), F.pad(targets, fill)
        self._forward(inputs.reshape(-1))
        head = self.model.head.weight
        losses, wanted = self.target_p, targets.reshape(-1, 1)
        for rows in _blocks(self.rows, self.head_rows):
            logits = torch.mm(self.final[rows], head.t(), out=self.logits[: rows.stop - rows.start])
            torch.logsumexp(logits, -1, keepdim=True, out=losses[rows])
            losses[rows].sub_(logits.gather(1, wanted[rows]))
        return losses.view(targets.shape)[:n_sequences].clone()

    def _forward(self, inputs: Tensor) -> None:
        torch.index_select(self.model.embedding.weight, 0, inputs, out=self.stream)
        _normalise(self.stream, self.scratch, self.embedded_scale, self.embedded)
        if self.model.masks.active:
            torch.mul(self.embedded, self._mask(self.embedded_mask), out=self.stream)
        else:
            self.stream.copy_(self.embedded)
        for block, layer in zip(self.model.blocks, self.layers, strict=True):
            assert isinstance(block, Block)
            self._attention(block, layer)
            self._mlp(block, layer)
        _normalise(self.stream, self.scratch, self.final_scale, self.final)

    def _mask(self, out: Tensor) -> Tensor:
        return self.model.masks.next(tuple(out.shape), out)

    def _attention(self, block: Block, layer: _Layer) -> None:
        _normalise(self.stream, self.scratch, layer.attn_scale, layer.attn_in)
        torch.mm(layer.attn_in, block.qkv.weight.t(), out=self.qkv)
        self._rotate(self.rotation)
        split = self.qkv.view(self.batch, self.context, 3, self.n_head, self.head_dim)
        # Inverse rms of each head, times d^-1/4 on queries and keys alike: scores come out over sqrt(d).
        root = math.sqrt(self.head_dim)
        squares = self.squares.view(self.batch, self.context, 2, self.n_head, self.head_dim)
        torch.mul(self.qkv[:, : 2 * self.width], self.qkv[:, : 2 * self.width], out=self.squares)
        torch.sum(squares, -1, out=layer.heads_scale)
        layer.heads_scale.mul_(1 / root).add_(RMS_EPS * root).rsqrt_()
        torch.mul(_heads_first(split[:, :, :2]), _heads_first(layer.heads_scale[..., None]), out=layer.heads)
        layer.values.copy_(split[:, :, 2].transpose(1, 2))
        queries, keys = layer.heads.flatten(1, 2)
        values, mixed = layer.values.flatten(0, 1), self.mixed.flatten(0, 1)
        sums = layer.inverse_sum.flatten(0, 1)
        for (lo, hi), weights in zip(self.query_blocks, layer.weights, strict=True):
            torch.bmm(queries[:, lo:hi], keys[:, :hi].transpose(1, 2), out=weights)
            weights.exp_()
            weights[:, :, lo:].mul_(self.causal[: hi - lo, : hi - lo])
            torch.sum(weights, -1, out=sums[:, lo:hi])
            torch.bmm(weights, values[:, :hi], out=mixed[:, lo:hi])
        layer.inverse_sum.reciprocal_()
        torch.mul(
            self.mixed.transpose(1, 2),
            layer.inverse_sum.transpose(1, 2)[..., None],
            out=layer.attn_mixed.view(self.batch, self.context, self.n_head, self.head_dim),
        )
        self._add_branch(self.stream, layer.attn_mixed, block.attn_out.weight, layer.attn_mask, self.branch)

    def _rotate(self, rotation: Tensor) -> None:
        """Turn the queries and keys in ``qkv`` by their positions."""
        pairs = torch.view_as_complex(self.qkv.view(self.batch, self.context, -1, 2))
        pairs[:, :, : self.width].mul_(rotation)

    def _mlp(self, block: Block, layer: _Layer) -> None:
        _normalise(self.stream, self.scratch, layer.mlp_scale, layer.mlp_in)
        if self.model.masks.active:
            self._mask(layer.mlp_mask)
        for rows in _blocks(self.rows, self.mlp_rows):
            relu = torch.mm(layer.mlp_in[rows], block.mlp_in.weight.t(), out=layer.mlp_relu[rows]).relu_()
            square = torch.mul(relu, relu, out=self.hidden[: rows.stop - rows.start])
            if self.model.masks.active:
                branch = torch.mm(square, block.mlp_out.weight.t(), out=self.branch[rows])
                self.stream[rows].addcmul_(branch, layer.mlp_mask[rows])
            else:
                self.stream[rows].addmm_(square, block.mlp_out.weight.t())

    def _add_branch(self, stream: Tensor, x: Tensor, weight: Tensor, mask: Tensor, out: Tensor) -> None:
        if self.model.masks.active:
            torch.mm(x, weight.t(), out=out)
            stream.addcmul_(out, self._mask(mask))
        else:
            stream.addmm_(x, weight.t())

    def _head_backward(self, targets: Tensor) -> Tensor:
        """Loss, the head's gradient, and the gradient of the stream before the final norm."""
        head = self.model.head.weight
        grad_head = _grad(head)
        for rows in _blocks(self.rows, self.head_rows):
            final, wanted = self.final[rows], targets[rows]
            p = torch.mm(final, head.t(), out=self.logits[: rows.stop - rows.start])
            torch.softmax(p, -1, out=p)
            torch.gather(p, 1, wanted, out=self.target_p[rows])
            # The gradient of cross-entropy by the logits is (p - one-hot) / N.
            p.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=p.dtype))
            grad_head.addmm_(p.t(), final, beta=float(rows.start > 0), alpha=1 / self.rows)
            torch.addmm(final, p, head, beta=0, alpha=1 / self.rows, out=self.grad_branch[rows])
        self.grad_stream.zero_()
        _normalise_backward(self.grad_branch, self.final, self.final_scale, self.scratch, self.grad_stream)
        # A probability below the smallest normal float32, 87 nats, reads as 87 nats.
        return self.target_p.clamp_(min=torch.finfo(torch.float32).tiny).log_().mean().neg_()

    def _grad_branch_out(self, mask: Tensor) -> Tensor:
        if self.model.masks.active:
            return torch.mul(self.grad_stream, mask, out=self.branch)
        return self.branch.copy_(self.grad_stream)

    def _mlp_backward(self, block: Block, layer: _Layer) -> None:
        grad_out = self._grad_branch_out(layer.mlp_mask)
        # The 2 of d relu(h)^2 = 2 relu(h) goes into the weights: a pass over D x 4D, not over N x 4D.
        doubled = block.mlp_out.weight * 2.0
        grad_in, grad_weight = _grad(block.mlp_in.weight), _grad(block.mlp_out.weight)
        for rows in _blocks(self.rows, self.mlp_rows):
            relu, beta = layer.mlp_relu[rows], float(rows.start > 0)
            hidden = self.hidden[: rows.stop - rows.start]
            torch.mul(relu, relu, out=hidden)
            grad_weight.addmm_(grad_out[rows].t(), hidden, beta=beta)
            torch.mm(grad_out[rows], doubled, out=hidden).mul_(relu)
            grad_in.addmm_(hidden.t(), layer.mlp_in[rows], beta=beta)
            torch.mm(hidden, block.mlp_in.weight, out=self.grad_branch[rows])
        _normalise_backward(self.grad_branch, layer.mlp_in, layer.mlp_scale, self.scratch, self.grad_stream)

    def _attention_backward(self, block: Block, layer: _Layer) -> None:
        grad_out = self._grad_branch_out(layer.attn_mask)
        torch.mm(grad_out.t(), layer.attn_mixed, out=_grad(block.attn_out.weight))
        grad_mixed = torch.mm(grad_out, block.attn_out.weight, out=self.grad_branch)
        # With w = exp(score), s = sum w and y = w v / s: grad score = w (g v - g y), where g = grad y / s.
        by_head = (self.batch, self.context, self.n_head, self.head_dim)
        torch.mul(grad_mixed.view(by_head).transpose(1, 2), layer.inverse_sum[..., None], out=self.grad_mixed)
        inner = torch.mul(grad_mixed, layer.attn_mixed, out=self.scratch).view(by_head).sum(-1).transpose(1, 2)
        inner = (inner * layer.inverse_sum).neg_().flatten(0, 1)[..., None]
        queries, keys = layer.heads.flatten(1, 2)
        grad_queries, grad_keys = self.grad_heads.flatten(1, 2)
        values, grad_values = layer.values.flatten(0, 1), self.grad_values.flatten(0, 1)
        grad = self.grad_mixed.flatten(0, 1)
        # From the last block, which reaches all keys and so overwrites, to the first; the others add.
        for index in reversed(range(len(self.query_blocks))):
            lo, hi = self.query_blocks[index]
            weights, beta = layer.weights[index], float(hi < self.context)
            grad_values[:, :hi].baddbmm_(weights.transpose(1, 2), grad[:, lo:hi], beta=beta)
            scores = self.grad_weights[index]
            torch.baddbmm(inner[:, lo:hi], grad[:, lo:hi], values[:, :hi].transpose(1, 2), out=scores).mul_(weights)
            torch.bmm(scores, keys[:, :hi], out=grad_queries[:, lo:hi])
            grad_keys[:, :hi].baddbmm_(scores.transpose(1, 2), queries[:, lo:hi], beta=beta)
        self._heads_backward(layer)
        torch.mm(self.qkv.t(), layer.attn_in, out=_grad(block.qkv.weight))
        torch.mm(self.qkv, block.qkv.weight, out=self.grad_branch)
        _normalise_backward(self.grad_branch, layer.attn_in, layer.attn_scale, self.scratch, self.grad_stream)

    def _heads_backward(self, layer: _Layer) -> None:
        """From gradients by head to the gradient of the projection's output, left in ``qkv``."""
        squares = self.squares.view(layer.heads.shape)
        inner = torch.mul(self.grad_heads, layer.heads, out=squares).sum(-1, keepdim=True)
        self.grad_heads.addcmul_(layer.heads, inner, value=-1 / math.sqrt(self.head_dim))
        split = self.qkv.view(self.batch, self.context, 3, self.n_head, self.head_dim)
        torch.mul(self.grad_heads, _heads_first(layer.heads_scale[..., None]), out=_heads_first(split[:, :, :2]))
        split[:, :, 2].transpose(1, 2).copy_(self.grad_values)
        self._rotate(self.rotation.conj())

    def _embedding_backward(self, inputs: Tensor) -> None:
        if self.model.masks.active:
            self.grad_stream.mul_(self.embedded_mask)
        self.branch.zero_()
        _normalise_backward(self.grad_stream, self.embedded, self.embedded_scale, self.scratch, self.branch)
        _grad(self.model.embedding.weight).zero_().index_add_(0, inputs, self.branch)


def _normalise(x: Tensor, scratch: Tensor, scale: Tensor, out: Tensor) -> None:
    """RMSNorm of rows x (N, D) into ``out``, and the inverse rms (N, 1) into ``scale``."""
    torch.mul(x, x, out=scratch)
    torch.sum(scratch, -1, keepdim=True, out=scale)
    scale.mul_(1 / x.shape[-1]).add_(RMS_EPS).rsqrt_()
    torch.mul(x, scale, out=out)


def _normalise_backward(grad: Tensor, normalised: Tensor, scale: Tensor, scratch: Tensor, add_to: Tensor) -> None:
    """Add RMSNorm's gradient, scale (grad - x_hat mean(grad x_hat)), to ``add_to``; ``grad`` is spent."""
    inner = torch.mul(grad, normalised, out=scratch).sum(-1, keepdim=True)
    grad.addcmul_(normalised, inner, value=-1 / grad.shape[-1])
    add_to.addcmul_(grad, scale)


def _heads_first(x: Tensor) -> Tensor:
    """(B, T, 2, H, d) seen as (2, B, H, T, d)."""
    return x.permute(2, 0, 3, 1, 4)


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _block_rows(rows: int, columns: int) -> int:
    return min(rows, max(64, BLOCK_ELEMENTS // columns))


def _blocks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
