"""The transformer against a plain reference, its size, its dropout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tune_dd.model import RMS_EPS, Transformer
from tune_dd.regimes import ModelSpec

torch.set_num_threads(1)  # tests run side by side; threads that wait for each other cost more than they give


def reference_loss(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """The model's mean loss, one head and one position pair at a time, with no fused kernel."""

    def normed(x: Tensor) -> Tensor:
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + RMS_EPS)

    def turned(x: Tensor) -> Tensor:
        dim = x.shape[-1]
        pairs = []
        for i in range(0, dim, 2):
            angle = torch.arange(x.shape[1], dtype=torch.float32) * 10_000.0 ** (-i / dim)
            a, b = x[:, :, i], x[:, :, i + 1]
            pairs += [a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()]
        return torch.stack(pairs, -1)

    width, heads = model.spec.n_embd, model.spec.n_head
    dim, context = width // heads, inputs.shape[1]
    future = torch.ones(context, context).triu(1).bool()
    x = normed(model.embedding.weight[inputs])
    for block in model.blocks:
        q, k, v = (normed(x) @ block.qkv.weight.T).split(width, -1)
        outs = []
        for h in range(heads):
            part = slice(h * dim, (h + 1) * dim)
            qh, kh = normed(turned(q[..., part])), normed(turned(k[..., part]))
            scores = (qh @ kh.transpose(1, 2) / math.sqrt(dim)).masked_fill(future, -math.inf)
            outs.append(scores.softmax(-1) @ v[..., part])
        x = x + torch.cat(outs, -1) @ block.attn_out.weight.T
        x = x + torch.relu(normed(x) @ block.mlp_in.weight.T) ** 2 @ block.mlp_out.weight.T
    logits = normed(x) @ model.head.weight.T
    p = logits.log_softmax(-1).gather(-1, targets[..., None])
    return -p.mean()


def small_model(seed: int = 0, context: int = 12) -> Transformer:
    return Transformer(ModelSpec(2, 2, 16), 300, context, seed=seed)


def tokens(batch: int, context: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(0, 300, (batch, context + 1), generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


@pytest.mark.parametrize(
    ("name", "vocab_size", "n_params"),
    [("L16_H8_D384", 4096, 31_457_280), ("L12_H8_D320", 4096, 17_367_040), ("L2_H2_D64", 512, 163_840)],
)
def test_parameter_counts_are_those_of_the_study(name: str, vocab_size: int, n_params: int) -> None:
    spec = ModelSpec.parse(name)
    model = Transformer(spec, vocab_size, context=8)
    assert model.n_params == n_params == spec.n_params(vocab_size)


def test_loss_and_gradients_equal_the_reference() -> None:
    model = small_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # zero projections would hide most of the model
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    inputs, targets = tokens(3, 12)
    loss = model.loss(inputs, targets)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    expected = reference_loss(model, inputs, targets)
    expected_grads = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(loss, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert expected_grad.norm() > 0
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_fifty_steps_of_training_have_the_losses_of_the_reference() -> None:
    model, plain = small_model(), small_model()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (model, plain)]
    losses = []
    for step in range(50):
        inputs, targets = tokens(2, 12, seed=step % 5)
        pair = model.loss(inputs, targets), reference_loss(plain, inputs, targets)
        for loss, optimizer in zip(pair, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append([float(loss.detach()) for loss in pair])
    ours, theirs = torch.tensor(losses).T
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours[-1] < ours[0] - 0.1  # it did train


def test_the_future_does_not_reach_the_past() -> None:
    model = small_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    inputs, _ = tokens(1, 12)
    changed = inputs.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 300
    before, after = model(inputs), model(changed)
    assert torch.equal(before[0, :7], after[0, :7])
    assert not torch.equal(before[0, 7], after[0, 7])


def test_output_projections_start_at_zero_so_the_first_loss_is_uniform() -> None:
    inputs, targets = tokens(2, 12)
    assert float(small_model().loss(inputs, targets).detach()) == pytest.approx(math.log(300), abs=1e-5)


def test_a_seed_fixes_the_weights_and_another_changes_them() -> None:
    first, same, other = small_model(3), small_model(3), small_model(4)
    assert torch.equal(first.embedding.weight, same.embedding.weight)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_dropout_changes_the_loss_and_is_a_function_of_its_key() -> None:
    model = small_model()
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens(2, 12)

    def loss(*setting: float) -> float:
        model.set_dropout(*setting)
        return float(model.loss(inputs, targets).detach())

    plain = loss(0.0)
    dropped = loss(0.3, 1, 0, 5)
    assert dropped != plain
    assert loss(0.3, 1, 0, 5) == dropped
    assert len({dropped, loss(0.3, 1, 0, 6), loss(0.3, 1, 1, 5), loss(0.3, 2, 0, 5), loss(0.4, 1, 0, 5)}) == 5
    assert loss(0.0, 1, 0, 5) == plain


def test_token_losses_average_to_the_loss() -> None:
    model = small_model()
    inputs, targets = tokens(4, 12)
    losses = model.token_losses(inputs, targets)
    assert losses.shape == targets.shape
    torch.testing.assert_close(losses.mean(), model.loss(inputs, targets))
