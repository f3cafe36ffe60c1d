"""A training step written out by hand: loss and gradients of ``Transformer`` in float32 on cpu.

It computes what ``Transformer.loss`` and autograd compute, to rounding (tests compare both), but does
every piece in place in buffers that live as long as the trial. On one core the model sizes of this
project spend most of an autograd step outside matrix products: on passes over memory and on faults of
freshly mapped pages (a 4 MB logits buffer costs 6 ms new and 0.7 ms kept). What is done about it:

- **Buffers kept.** Activations and gradients are allocated once, with the trial.
- **Sequences in groups, rows in blocks.** Forward and backward pass go through a few sequences at a time
  and add up gradients; MLP and head work on blocks of rows. What one product leaves is still in the
  cache when the next pass wants it, and activations take the memory of one group.
- **Attention without its maximum.** Queries and keys are normalised, so a score is at most sqrt(d) and
  exp cannot overflow; the division by the sum moves from T x T scores to T x d outputs. Queries go in
  blocks that stop at their last key, so most of what is above the diagonal is never computed. Each
  block has its own buffers: a batched product into a slice runs at half speed.
- **Rotation as one complex product**, in place.
- **Dropout and residual sum in one pass**, and without dropout the sum happens inside the product.

Notation: G sequences in a group, N = G T rows, D width, H heads of width d, x the residual stream (N, D);
a ``grad`` prefix marks a derivative of the mean loss of the whole batch.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tune_dd.model import RMS_EPS, Block, Transformer

# Measured at the four smaller benchmark shapes: half or twice a group's size is within a few per cent, but
# groups and blocks of 256 rows instead of 512 cost L4, L6 and L12 3 to 10 %, since they sum a weight gradient
# twice as often.
GROUP_ELEMENTS = 1 << 18  # of the residual stream of one group of sequences, 1 MiB
BLOCK_ELEMENTS = 1 << 18  # of one block of MLP or head activations, 1 MiB
MIN_BLOCK_ROWS = 512
QUERY_BLOCK = 64


@dataclass
class _Layer:
    """What one layer's forward pass leaves for its backward pass."""

    attn_in: Tensor  # normalised stream (N, D)
    attn_scale: Tensor  # its inverse rms (N, 1)
    queries: list[Tensor]  # rotated, normalised, times d^-1/4, per block of positions (G, H, block, d)
    keys: Tensor  # likewise, of all positions (G, H, T, d)
    heads_scale: Tensor  # their inverse rms, with that factor (G, T, 2, H)
    values: Tensor  # (G, H, T, d)
    weights: list[Tensor]  # exp of scores per block of queries (G H, block, keys), not divided by their sum
    inverse_sum: list[Tensor]  # 1 / that sum (G, H, block, 1)
    attn_mixed: Tensor  # attention output before its projection (N, D)
    mlp_in: Tensor  # normalised stream (N, D)
    mlp_scale: Tensor
    mlp_relu: Tensor  # relu of the hidden layer (N, 4 D)


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
        self.context, self.n_head = context, spec.n_head
        self.width, self.head_dim = spec.n_embd, spec.n_embd // spec.n_head
        self.group = group = group_size(batch_size, context * self.width)
        self.batch_rows, self.rows = batch_size * context, group * context
        self.edges = list(itertools.pairwise([*range(0, context, QUERY_BLOCK), context]))
        self.causal = torch.ones(QUERY_BLOCK, QUERY_BLOCK).tril_()
        # One complex factor per pair of neighbouring channels, repeated for all heads of queries and keys.
        self.rotation = torch.complex(model.cos, -model.sin).repeat(1, 2 * spec.n_head)
        self.layers = [self._layer() for _ in range(spec.n_layer)]
        self.masks = torch.empty(1 + 2 * spec.n_layer, self.batch_rows, self.width)
        self.stream = self._rows()
        self.embedded, self.embedded_scale = self._rows(), torch.empty(self.rows, 1)
        self.final, self.final_scale = self._rows(), torch.empty(self.rows, 1)
        self.grad_stream, self.grad_branch = self._rows(), self._rows()
        self.branch, self.scratch = self._rows(), self._rows()
        self.qkv = self._rows(3)
        self.mixed, self.grad_mixed, self.grad_queries = self._by_block(), self._by_block(), self._by_block()
        self.grad_keys, self.grad_values, self.grad_part = self._heads(), self._heads(), self._heads()
        self.grad_weights = self._scores()
        self.mlp_rows = block_rows(self.rows, 4 * self.width)
        self.hidden = torch.empty(self.mlp_rows, 4 * self.width)
        self.head_rows = block_rows(self.rows, model.vocab_size)
        self.logits = torch.empty(self.head_rows, model.vocab_size)
        self.target_p = torch.empty(self.batch_rows, 1)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def _rows(self, times: int = 1) -> Tensor:
        return torch.empty(self.rows, times * self.width)

    def _heads(self) -> Tensor:
        return torch.empty(self.group, self.n_head, self.context, self.head_dim)

    def _by_block(self) -> list[Tensor]:
        return [torch.empty(self.group, self.n_head, hi - lo, self.head_dim) for lo, hi in self.edges]

    def _scores(self) -> list[Tensor]:
        return [torch.empty(self.group * self.n_head, hi - lo, hi) for lo, hi in self.edges]

    def _layer(self) -> _Layer:
        return _Layer(
            attn_in=self._rows(),
            attn_scale=torch.empty(self.rows, 1),
            queries=self._by_block(),
            keys=self._heads(),
            heads_scale=torch.empty(self.group, self.context, 2, self.n_head),
            values=self._heads(),
            weights=self._scores(),
            inverse_sum=[torch.empty(self.group, self.n_head, hi - lo, 1) for lo, hi in self.edges],
            attn_mixed=self._rows(),
            mlp_in=self._rows(),
            mlp_scale=torch.empty(self.rows, 1),
            mlp_relu=self._rows(4),
        )

    @torch.no_grad()
    def loss_and_gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy (nats, scalar) of int64 inputs and targets (B, T); sets every ``.grad``.

        Dropout is what ``model.set_dropout`` last said.
        """
        if self.model.masks.active:
            for mask in self.masks:
                self.model.masks.next(tuple(mask.shape), mask)
        inputs, targets = inputs.reshape(-1), targets.reshape(-1, 1)
        for rows in _blocks(self.batch_rows, self.rows):
            masks = self.masks[:, rows] if self.model.masks.active else None
            # The first group overwrites the gradients of the step before, the others add to it.
            self.beta = float(rows.start > 0)
            self._forward(inputs[rows], masks)
            self._head_backward(targets[rows], self.target_p[rows])
            for index in reversed(range(len(self.layers))):
                block, layer = self._block(index), self.layers[index]
                self._mlp_backward(block, layer, None if masks is None else masks[2 * index + 2])
                self._attention_backward(block, layer, None if masks is None else masks[2 * index + 1])
            self._embedding_backward(inputs[rows], None if masks is None else masks[0])
        # A probability below the smallest normal float32, 87 nats, reads as 87 nats.
        return self.target_p.clamp_(min=torch.finfo(torch.float32).tiny).log_().mean().neg_()

    @torch.no_grad()
    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every target, nats, float32 (n, T), without dropout; any number n of sequences."""
        shape, missing = targets.shape, -len(inputs) % self.group
        if missing:  # buffers have one shape: fill the last group up with sequences that are cut off again
            inputs, targets = F.pad(inputs, (0, 0, 0, missing)), F.pad(targets, (0, 0, 0, missing))
        head, inputs, targets = self.model.head.weight, inputs.reshape(-1), targets.reshape(-1, 1)
        losses = torch.empty(targets.shape)
        for rows in _blocks(len(inputs), self.rows):
            self._forward(inputs[rows], None)
            group_losses, group_targets = losses[rows], targets[rows]
            for part in _blocks(self.rows, self.head_rows):
                logits = torch.mm(self.final[part], head.t(), out=self.logits[: part.stop - part.start])
                torch.logsumexp(logits, -1, keepdim=True, out=group_losses[part])
                group_losses[part].sub_(logits.gather(1, group_targets[part]))
        return losses.view(-1, shape[1])[: shape[0]]

    def _block(self, index: int) -> Block:
        block = self.model.blocks[index]
        assert isinstance(block, Block)
        return block

    def _forward(self, inputs: Tensor, masks: Tensor | None) -> None:
        torch.index_select(self.model.embedding.weight, 0, inputs, out=self.stream)
        _normalise(self.stream, self.embedded_scale, self.embedded)
        if masks is None:
            self.stream.copy_(self.embedded)
        else:
            torch.mul(self.embedded, masks[0], out=self.stream)
        for index, layer in enumerate(self.layers):
            block = self._block(index)
            self._attention(block, layer, None if masks is None else masks[2 * index + 1])
            self._mlp(block, layer, None if masks is None else masks[2 * index + 2])
        _normalise(self.stream, self.final_scale, self.final)

    def _attention(self, block: Block, layer: _Layer, mask: Tensor | None) -> None:
        _normalise(self.stream, layer.attn_scale, layer.attn_in)
        torch.mm(layer.attn_in, block.qkv.weight.t(), out=self.qkv)
        self._rotate(self.rotation)
        # Inverse rms of each head, times d^-1/4 on queries and keys alike: scores come out over sqrt(d).
        root = math.sqrt(self.head_dim)
        split = self.qkv.view(self.group, self.context, 3, self.n_head, self.head_dim)
        torch.linalg.vector_norm(split[:, :, :2], dim=-1, out=layer.heads_scale)
        layer.heads_scale.square_().mul_(1 / root).add_(RMS_EPS * root).rsqrt_()
        q, k, v = self._split()
        scale_q, scale_k = self._split_scale(layer)
        for (lo, hi), queries in zip(self.edges, layer.queries, strict=True):
            torch.mul(q[:, :, lo:hi], scale_q[:, :, lo:hi], out=queries)
        torch.mul(k, scale_k, out=layer.keys)
        layer.values.copy_(v)
        keys, values = layer.keys.flatten(0, 1), layer.values.flatten(0, 1)
        mixed_rows = layer.attn_mixed.view(self.group, self.context, self.n_head, self.head_dim).transpose(1, 2)
        for index, (lo, hi) in enumerate(self.edges):
            weights, inverse_sum = layer.weights[index], layer.inverse_sum[index]
            torch.bmm(layer.queries[index].flatten(0, 1), keys[:, :hi].transpose(1, 2), out=weights)
            weights.exp_()
            weights[:, :, lo:].mul_(self.causal[: hi - lo, : hi - lo])
            torch.sum(weights, -1, keepdim=True, out=inverse_sum.flatten(0, 1))
            inverse_sum.reciprocal_()
            torch.bmm(weights, values[:, :hi], out=self.mixed[index].flatten(0, 1))
            torch.mul(self.mixed[index], inverse_sum, out=mixed_rows[:, :, lo:hi])
        if mask is None:
            self.stream.addmm_(layer.attn_mixed, block.attn_out.weight.t())
        else:
            branch = torch.mm(layer.attn_mixed, block.attn_out.weight.t(), out=self.branch)
            self.stream.addcmul_(branch, mask)

    def _split(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values in ``qkv``, each seen as (G, H, T, d)."""
        split = self.qkv.view(self.group, self.context, 3, self.n_head, self.head_dim).permute(2, 0, 3, 1, 4)
        return split[0], split[1], split[2]

    def _split_scale(self, layer: _Layer) -> tuple[Tensor, Tensor]:
        """The scales of queries and keys, each seen as (G, H, T, 1)."""
        split = layer.heads_scale.permute(2, 0, 3, 1)[..., None]
        return split[0], split[1]

    def _rotate(self, rotation: Tensor) -> None:
        """Turn the queries and keys in ``qkv`` by their positions."""
        pairs = torch.view_as_complex(self.qkv.view(self.group, self.context, -1, 2))
        pairs[:, :, : self.width].mul_(rotation)

    def _mlp(self, block: Block, layer: _Layer, mask: Tensor | None) -> None:
        _normalise(self.stream, layer.mlp_scale, layer.mlp_in)
        for rows in _blocks(self.rows, self.mlp_rows):
            relu = torch.mm(layer.mlp_in[rows], block.mlp_in.weight.t(), out=layer.mlp_relu[rows]).relu_()
            square = torch.mul(relu, relu, out=self.hidden[: rows.stop - rows.start])
            if mask is None:
                self.stream[rows].addmm_(square, block.mlp_out.weight.t())
            else:
                branch = torch.mm(square, block.mlp_out.weight.t(), out=self.branch[rows])
                self.stream[rows].addcmul_(branch, mask[rows])

    def _head_backward(self, targets: Tensor, target_p: Tensor) -> None:
        """The targets' probabilities, the head's gradient, and that of the stream before the final norm."""
        head, part_of_mean = self.model.head.weight, 1 / self.batch_rows
        grad_head = _grad(head)
        for rows in _blocks(self.rows, self.head_rows):
            final, wanted = self.final[rows], targets[rows]
            p = torch.mm(final, head.t(), out=self.logits[: rows.stop - rows.start])
            torch.softmax(p, -1, out=p)
            torch.gather(p, 1, wanted, out=target_p[rows])
            # The gradient of cross-entropy by the logits is (p - one-hot) / rows.
            p.scatter_add_(1, wanted, torch.full(wanted.shape, -1.0))
            grad_head.addmm_(p.t(), final, beta=1.0 if rows.start else self.beta, alpha=part_of_mean)
            torch.addmm(final, p, head, beta=0, alpha=part_of_mean, out=self.grad_branch[rows])
        self.grad_stream.zero_()
        _normalise_backward(self.grad_branch, self.final, self.final_scale, self.scratch, self.grad_stream)

    def _grad_of_branch(self, mask: Tensor | None) -> Tensor:
        return self.grad_stream if mask is None else torch.mul(self.grad_stream, mask, out=self.branch)

    def _mlp_backward(self, block: Block, layer: _Layer, mask: Tensor | None) -> None:
        grad_out = self._grad_of_branch(mask)
        # The 2 of d relu(h)^2 = 2 relu(h) goes into the weights: a pass over D x 4D, not over N x 4D.
        doubled = block.mlp_out.weight * 2.0
        grad_in, grad_weight = _grad(block.mlp_in.weight), _grad(block.mlp_out.weight)
        for rows in _blocks(self.rows, self.mlp_rows):
            relu, beta = layer.mlp_relu[rows], 1.0 if rows.start else self.beta
            hidden = torch.mul(relu, relu, out=self.hidden[: rows.stop - rows.start])
            grad_weight.addmm_(grad_out[rows].t(), hidden, beta=beta)
            torch.mm(grad_out[rows], doubled, out=hidden).mul_(relu)
            grad_in.addmm_(hidden.t(), layer.mlp_in[rows], beta=beta)
            torch.mm(hidden, block.mlp_in.weight, out=self.grad_branch[rows])
        _normalise_backward(self.grad_branch, layer.mlp_in, layer.mlp_scale, self.scratch, self.grad_stream)

    def _attention_backward(self, block: Block, layer: _Layer, mask: Tensor | None) -> None:
        grad_out = self._grad_of_branch(mask)
        _grad(block.attn_out.weight).addmm_(grad_out.t(), layer.attn_mixed, beta=self.beta)
        grad_mixed = torch.mm(grad_out, block.attn_out.weight, out=self.grad_branch)
        # With w = exp(score), s = sum w and y = w v / s: grad score = w (g v - g y), where g = grad y / s.
        by_head = (self.group, self.context, self.n_head, self.head_dim)
        inner = torch.mul(grad_mixed, layer.attn_mixed, out=self.scratch).view(by_head).sum(-1, keepdim=True)
        inner, grad_mixed = inner.transpose(1, 2).neg_(), grad_mixed.view(by_head).transpose(1, 2)
        keys, values = layer.keys.flatten(0, 1), layer.values.flatten(0, 1)
        grad_keys, grad_values = self.grad_keys.flatten(0, 1), self.grad_values.flatten(0, 1)
        # From the last block, which reaches all keys and so overwrites, to the first; the others add.
        for index in reversed(range(len(self.edges))):
            lo, hi = self.edges[index]
            weights, inverse_sum = layer.weights[index], layer.inverse_sum[index]
            grad = torch.mul(grad_mixed[:, :, lo:hi], inverse_sum, out=self.grad_mixed[index]).flatten(0, 1)
            offset = (inner[:, :, lo:hi] * inverse_sum).flatten(0, 1)
            scores = self.grad_weights[index]
            torch.baddbmm(offset, grad, values[:, :hi].transpose(1, 2), out=scores).mul_(weights)
            torch.bmm(scores, keys[:, :hi], out=self.grad_queries[index].flatten(0, 1))
            self._add_by_key(weights, grad, grad_values)
            self._add_by_key(scores, layer.queries[index].flatten(0, 1), grad_keys)
        self._heads_backward(layer)
        _grad(block.qkv.weight).addmm_(self.qkv.t(), layer.attn_in, beta=self.beta)
        torch.mm(self.qkv, block.qkv.weight, out=self.grad_branch)
        _normalise_backward(self.grad_branch, layer.attn_in, layer.attn_scale, self.scratch, self.grad_stream)

    def _add_by_key(self, scores: Tensor, x: Tensor, total: Tensor) -> None:
        """scores^T x, (G H, keys, d), into the first keys of ``total``; added where it is not all of them."""
        keys = scores.shape[2]
        if keys == self.context:
            torch.bmm(scores.transpose(1, 2), x, out=total)
        else:
            part = self.grad_part.view(-1)[: len(scores) * keys * self.head_dim].view(-1, keys, self.head_dim)
            total[:, :keys].add_(torch.bmm(scores.transpose(1, 2), x, out=part))

    def _heads_backward(self, layer: _Layer) -> None:
        """From gradients by head to the gradient of the projection's output, left in ``qkv``."""
        q, k, v = self._split()
        scale_q, scale_k = self._split_scale(layer)
        norm = -1 / math.sqrt(self.head_dim)  # the mean over d, times the sqrt(d) that the two d^-1/4 took out
        for (lo, hi), queries, grad, product in zip(
            self.edges, layer.queries, self.grad_queries, self.mixed, strict=True
        ):
            inner = torch.mul(grad, queries, out=product).sum(-1, keepdim=True)
            grad.addcmul_(queries, inner, value=norm)
            torch.mul(grad, scale_q[:, :, lo:hi], out=q[:, :, lo:hi])
        inner = torch.mul(self.grad_keys, layer.keys, out=self.grad_part).sum(-1, keepdim=True)
        self.grad_keys.addcmul_(layer.keys, inner, value=norm)
        torch.mul(self.grad_keys, scale_k, out=k)
        v.copy_(self.grad_values)
        self._rotate(self.rotation.conj())

    def _embedding_backward(self, inputs: Tensor, mask: Tensor | None) -> None:
        if mask is not None:
            self.grad_stream.mul_(mask)
        self.branch.zero_()
        _normalise_backward(self.grad_stream, self.embedded, self.embedded_scale, self.scratch, self.branch)
        grad = _grad(self.model.embedding.weight)
        if self.beta == 0.0:
            grad.zero_()
        grad.index_add_(0, inputs, self.branch)


def _normalise(x: Tensor, scale: Tensor, out: Tensor) -> None:
    """RMSNorm of rows x (N, D) into ``out``, and the inverse rms (N, 1) into ``scale``."""
    torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=scale)  # one pass, where a sum of squares takes two
    scale.square_().mul_(1 / x.shape[-1]).add_(RMS_EPS).rsqrt_()
    torch.mul(x, scale, out=out)


def _normalise_backward(grad: Tensor, normalised: Tensor, scale: Tensor, scratch: Tensor, add_to: Tensor) -> None:
    """Add RMSNorm's gradient, scale (grad - x_hat mean(grad x_hat)), to ``add_to``; ``grad`` is spent."""
    inner = torch.mul(grad, normalised, out=scratch).sum(-1, keepdim=True)
    grad.addcmul_(normalised, inner, value=-1 / grad.shape[-1])
    add_to.addcmul_(grad, scale)


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def group_size(batch_size: int, elements: int) -> int:
    """The most sequences, of a divisor of the batch, whose stream stays within ``GROUP_ELEMENTS``."""
    fits = [n for n in range(1, batch_size + 1) if batch_size % n == 0 and n * elements <= GROUP_ELEMENTS]
    return max(fits, default=1)


def block_rows(rows: int, columns: int) -> int:
    return min(rows, max(MIN_BLOCK_ROWS, BLOCK_ELEMENTS // columns))


def _blocks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
