"""An accelerator's arithmetic held against the cpu's, where a trial trains and with the numbers that it trains on.

What is looked for is a device that returns wrong products without an error, as torch on mps is reported to
(pytorch#193487: a tenth and more of the result, from one allocation to the next). A look sees the products of that
moment and finds what lasts: it is no proof of those before and after it.
"""

from __future__ import annotations

import math

import torch

from tune_dd.model import Transformer

TOLERANCE = 0.02  # of the loss, and of a gradient's norm; TF32 in every product stays below a fifth of it
SEQUENCES = 8  # of a batch: tensors of millions of elements at full scale, and a second or two of the cpu


class DeviceMiscomputes(Exception):
    """A device's float32 results are not those of the cpu."""


def check_arithmetic(model: Transformer, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Compare the loss of a batch, without dropout, and the gradient of every parameter with a cpu copy's.

    The model's gradients are left empty. Says nothing where the cpu's own numbers are not finite: a model that has
    diverged is no fault of the device.

    Args:
        inputs: (B, T), int64, on the model's device, as are the targets. Of the first 8 of B sequences.

    Raises:
        DeviceMiscomputes: |loss - cpu's| > 0.02 |cpu's|, or, of a parameter,
            ||gradient - cpu's|| > 0.02 ||cpu's||; the worst of them is named.
    """
    inputs, targets = inputs[:SEQUENCES], targets[:SEQUENCES]
    reference = Transformer(model.spec, model.vocab_size, model.context)
    reference.load_state_dict(model.state_dict())
    model.set_dropout(0.0)
    loss, gradients = _loss_and_gradients(model, inputs, targets, n_parts=1)  # as a step does it
    expected_loss, expected = _loss_and_gradients(reference, inputs.cpu(), targets.cpu(), n_parts=len(inputs))
    if not all(bool(value.isfinite().all()) for value in (expected_loss, *expected.values())):
        return
    errors = {name: _error(gradients[name], gradient) for name, gradient in expected.items()}
    worst = max(errors, key=lambda name: errors[name])
    loss_error = _error(loss, expected_loss)
    if loss_error > TOLERANCE or errors[worst] > TOLERANCE:
        raise DeviceMiscomputes(
            f"{inputs.device.type} computes other numbers than the cpu: of one batch the loss is off by "
            f"{loss_error:.2g} of itself and the gradient of {worst} by {errors[worst]:.2g}, where rounding stays "
            f"below {TOLERANCE:g}; what was trained since the last row is dropped"
        )


def _loss_and_gradients(
    model: Transformer, inputs: torch.Tensor, targets: torch.Tensor, *, n_parts: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Both on the cpu, of equal parts of the batch one after the other: what is kept for a backward pass is large."""
    model.zero_grad()
    loss = torch.zeros(())
    for part in zip(inputs.chunk(n_parts), targets.chunk(n_parts), strict=True):
        part_loss = model.loss(*part) / n_parts
        part_loss.backward()  # type: ignore[no-untyped-call]
        loss += part_loss.detach().cpu()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss, gradients


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over that of what is expected; infinite where it should be 0 or is not a number."""
    difference, size = float((found - expected).norm()), float(expected.norm())
    if difference == 0.0:
        return 0.0
    return difference / size if size and math.isfinite(difference) else math.inf
