"""A device that returns wrong numbers is found out; one that rounds differently is not."""

from __future__ import annotations

import copy

import pytest
import torch

from tune_dd.arithmetic import TOLERANCE, DeviceMiscomputes, check_arithmetic
from tune_dd.model import Transformer
from tune_dd.regimes import ModelSpec

torch.set_num_threads(1)

SPEC = ModelSpec(3, 2, 32)
VOCAB = 200


def trained(seed: int = 0) -> Transformer:
    """A model whose every parameter has a gradient: output projections and head begin at zero."""
    model = Transformer(SPEC, VOCAB, 24, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model.loss(*batch()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(VOCAB, (4, 25), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


@pytest.mark.parametrize("name", [name for name, _ in Transformer(SPEC, VOCAB, 24).named_parameters()])
def test_a_gradient_that_is_off_is_found_and_named(name: str) -> None:
    model = trained()
    dict(model.named_parameters())[name].register_hook(lambda gradient: gradient * (1 + 2 * TOLERANCE))
    with pytest.raises(DeviceMiscomputes, match=rf"gradient of {name} by 0\.04"):
        check_arithmetic(model, *batch())


def test_a_part_of_a_product_that_is_off_is_found() -> None:
    """As reported of mps: some rows of one product, off by a tenth of its scale."""
    model = trained()

    def wrong_rows(module: torch.nn.Module, inputs: object, out: torch.Tensor) -> torch.Tensor:
        off = torch.zeros_like(out)
        off[:1, :8] = 0.13 * out.detach().abs().mean()
        return out + off

    block = model.blocks[1]
    block.mlp_in.register_forward_hook(wrong_rows)  # type: ignore[union-attr, operator]
    with pytest.raises(DeviceMiscomputes):
        check_arithmetic(model, *batch())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1.1])
def test_a_loss_that_is_off_is_found(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    loss = model.loss

    def off(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        right = loss(inputs, targets)
        return right + (wrong - 1) * right.detach()  # its gradients are right

    monkeypatch.setattr(model, "loss", off)
    with pytest.raises(DeviceMiscomputes, match=r"the loss is off by (0\.1|inf) of itself and the gradient of .*e-07,"):
        check_arithmetic(model, *batch())


def test_a_model_that_has_diverged_is_no_fault_of_the_device() -> None:
    model = trained()
    with torch.no_grad():
        model.head.weight[0] = float("nan")
    check_arithmetic(model, *batch())


def test_a_gradient_where_there_should_be_none_is_found() -> None:
    model = Transformer(SPEC, VOCAB, 24)  # its head is zero, so nothing below it has a gradient
    check_arithmetic(model, *batch())
    model.embedding.weight.register_hook(lambda gradient: gradient + 1e-9)
    with pytest.raises(DeviceMiscomputes, match=r"gradient of embedding\.weight by inf"):
        check_arithmetic(model, *batch())


def test_rounding_passes_with_room_to_spare() -> None:
    """float32 against float64, which it differs from by what any other order of its sums would."""
    model = trained()
    check_arithmetic(model, *batch())
    exact, rounded = copy.deepcopy(model).double(), model
    exact.cos, exact.sin = exact.cos.double(), exact.sin.double()
    exact.loss(*batch()).backward()  # type: ignore[no-untyped-call]
    rounded.loss(*batch()).backward()  # type: ignore[no-untyped-call]
    for (name, p), q in zip(rounded.named_parameters(), exact.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        error = float((p.grad.double() - q.grad).norm() / q.grad.norm())
        assert error < TOLERANCE / 1000, name


def test_the_look_leaves_no_trace() -> None:
    model = trained()
    before = copy.deepcopy(model.state_dict())
    check_arithmetic(model, *batch())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
