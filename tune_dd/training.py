"""One trial's training, step by step, and its read-outs. Knows nothing of files or Ray."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tune_dd.arithmetic import check_arithmetic
from tune_dd.device import synchronize
from tune_dd.evaluation import EVAL_BATCH_TOKENS, TrainingDiverged, autocast, evaluate, to_device, training_windows
from tune_dd.model import Transformer
from tune_dd.native import hand_written_step
from tune_dd.optimizer import AdamW, learning_rate
from tune_dd.stream import EvaluationWindows, evaluation_windows, sample_batch
from tune_dd.trial import Stage, TrialSpec

_ESTIMATE_SECONDS = 3.0  # a step of the largest model takes over 10 s on one core
TRACE_EVERY = 16  # steps between points of the training curve, and between looks at the loss


@dataclass(frozen=True)
class TrialData:
    """What a trial reads.

    Attributes:
        tokens: train split, uint16 (memory-mapped).
        validation: validation split, uint16.
        windows: fixed windows of the validation split.
        token_bytes: UTF-8 bytes of every token, int64 (vocab_size,), 0 for special tokens.
    """

    tokens: npt.NDArray[np.uint16]
    validation: npt.NDArray[np.uint16]
    windows: EvaluationWindows
    token_bytes: npt.NDArray[np.int64]


class TrialRun:
    """One trial's model, optimizer and counters, advanced step by step.

    Stage and step, never history, decide batch, mask and rate, so a run continued from ``state()``
    equals one that was never stopped, bit for bit on cpu.

    Args:
        as_accelerator: take the path of an accelerator (autograd, masks drawn on the device); by default
            wherever the device is not the cpu.

    Attributes:
        step: optimizer steps done.
        trace: points [step, mean batch loss since the point before].
        train_seconds: time spent in ``advance``.
    """

    def __init__(
        self, spec: TrialSpec, data: TrialData, device: torch.device, *, as_accelerator: bool | None = None
    ) -> None:
        self.spec, self.data, self.device = spec, data, device
        accelerated = device.type != "cpu" if as_accelerator is None else as_accelerator
        self.model = Transformer(
            spec.model,
            spec.vocab_size,
            spec.protocol.context,
            seed=spec.seed,
            device=device,
            masks_on_device=accelerated,
        )
        self.optimizer = AdamW(self.model.parameters(), spec.protocol)
        # The hand-written step is for float32 on cpu; elsewhere autograd finds fused kernels of its own.
        exact = spec.protocol.precision == "float32"
        self._fused = hand_written_step(self.model, spec.protocol.batch_size) if exact and not accelerated else None
        self._may_miscompute = exact and accelerated
        self._looked_at = 0  # the step; before the first one output projections and head are zero and tell nothing
        self.step = 0
        self.train_seconds = 0.0
        self.trace: list[list[float]] = []
        # Losses since the last point of the trace, summed on the device so that no step waits for it.
        self._loss_sum = torch.zeros((), device=device)
        self._loss_count = 0

    def stage_of(self, step: int) -> tuple[int, Stage]:
        """Index and stage of the update that follows ``step`` done ones."""
        for index, stage in enumerate(self.spec.stages):
            if step < stage.end_step:
                return index, stage
        raise ValueError(f"step {step} is past the end of the trial, {self.spec.total_steps}")

    def advance(
        self,
        until_step: int,
        *,
        should_stop: Callable[[], bool] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> bool:
        """Train until ``step == until_step``.

        Args:
            should_stop: asked before every step; the state is whole whenever it is asked.
            on_step: told the number of steps done after each.

        Returns:
            False if ``should_stop`` ended it before ``until_step``.

        Raises:
            TrainingDiverged: naming the step by which the loss was NaN or infinite. Looked at every
                ``TRACE_EVERY`` steps and at the end, since a look at every step would stall a device.
        """
        began = time.perf_counter()
        try:
            while self.step < until_step:
                if should_stop is not None and should_stop():
                    return False
                self._train_step()
                if on_step is not None:
                    on_step(self.step)
            self._check(float(self._loss_sum))
            return True
        finally:
            synchronize(self.device)
            self.train_seconds += time.perf_counter() - began

    def _train_step(self) -> None:
        spec, protocol = self.spec, self.spec.protocol
        index, stage = self.stage_of(self.step)
        inputs, targets = self._batch(index, stage)
        self.model.set_dropout(stage.dropout, spec.seed, index, self.step)
        loss = self._loss_and_gradients(inputs, targets)
        self.optimizer.step(learning_rate(protocol, self.step, spec.total_steps))
        self.step += 1
        self._loss_sum += loss
        self._loss_count += 1
        if self.step % TRACE_EVERY == 0:
            mean = float(self._loss_sum) / self._loss_count
            self._check(mean)
            self.trace.append([self.step, mean])
            self._loss_sum.zero_()
            self._loss_count = 0

    def _batch(self, index: int, stage: Stage) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the next step, on the device."""
        inputs, targets = sample_batch(
            self.data.tokens,
            stage.unique_tokens,
            self.spec.protocol.batch_size,
            self.spec.protocol.context,
            seed=self.spec.seed,
            stage=index,
            step=self.step,
        )
        return to_device(inputs, self.device), to_device(targets, self.device)

    def check_device(self) -> None:
        """Hold an accelerator's float32 arithmetic against the cpu's, on a batch of the stage trained last.

        Nothing on the cpu itself, in bfloat16, and where nothing was trained since the last look. Training goes on as
        if there had been none.

        Raises:
            TrainingDiverged: the loss since the last look at it is NaN or infinite.
            DeviceMiscomputes: device and cpu differ by more than rounding.
        """
        if self._may_miscompute and self.step != self._looked_at:
            self._check(float(self._loss_sum))
            check_arithmetic(self.model, *self._batch(*self.stage_of(self.step - 1)))
            self._looked_at = self.step

    def _loss_and_gradients(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self._fused is not None:
            return self._fused.loss_and_gradients(inputs, targets)
        self.optimizer.zero_grad()
        with autocast(self.device, self.spec.protocol.precision):
            loss = self.model.loss(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _token_losses(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self._fused is not None:
            return self._fused.token_losses(inputs, targets)
        with autocast(self.device, self.spec.protocol.precision):
            return self.model.token_losses(inputs, targets)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the training loss is {loss} by step {self.step} of {self.spec.name}")

    def read_out(self) -> dict[str, float | int]:
        """Evaluate with dropout off.

        Returns:
            ``train_loss`` and ``val_loss`` (nats per token; the former over fixed windows of the
            stage's prefix), ``val_bpb`` (bits per UTF-8 byte), ``gap`` (val_loss - train_loss),
            ``val_tokens``, and ``learning_rate`` and ``dropout`` of the step just trained.

        Raises:
            TrainingDiverged: a loss is NaN or infinite.
        """
        protocol, data = self.spec.protocol, self.data
        trained = max(0, self.step - 1)
        _, stage = self.stage_of(trained)
        batch = max(1, EVAL_BATCH_TOKENS // protocol.context)
        self.model.set_dropout(0.0)
        train, validation = (
            evaluate(self._token_losses, batches, data.token_bytes, self.device)
            for batches in (
                training_windows(data.tokens, stage.unique_tokens, protocol.context, batch),
                data.windows.batches(data.validation, batch),
            )
        )
        self._check(train.loss)
        self._check(validation.loss)
        return {
            "train_loss": train.loss,
            "val_loss": validation.loss,
            "val_bpb": validation.bpb,
            "gap": validation.loss - train.loss,
            "val_tokens": validation.tokens,
            "learning_rate": learning_rate(protocol, trained, self.spec.total_steps),
            "dropout": stage.dropout,
        }

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything that ``load_state`` needs: tensors (cpu, contiguous, own memory) and counters (JSON).

        Raises:
            TrainingDiverged: the loss since the last look at it is NaN or infinite.
        """
        self._check(float(self._loss_sum))
        tensors = dict(self._tensors())
        counters = {
            "step": self.step,
            "train_seconds": self.train_seconds,
            "trace": [list(point) for point in self.trace],
            "loss_sum": float(self._loss_sum),
            "loss_count": self._loss_count,
        }
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, counters

    def load_state(self, tensors: dict[str, torch.Tensor], counters: dict[str, Any]) -> None:
        """Continue from what ``state`` gave.

        Raises:
            ValueError: a tensor is missing, or has another shape than this trial's model.
        """
        self.step = int(counters["step"])
        self.train_seconds = float(counters["train_seconds"])
        self.trace = [list(point) for point in counters["trace"]]
        self._loss_sum.fill_(counters["loss_sum"])
        self._loss_count = int(counters["loss_count"])
        with torch.no_grad():
            for name, tensor in self._tensors():
                tensor.copy_(_tensor(tensors, name, tensor))
            for done in self.optimizer.steps:
                done.fill_(self.step)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights and moments under the names that ``state`` gives them."""
        names = [name for name, _ in self.model.named_parameters()]
        for kind, kept in (
            ("model", self.optimizer.parameters),
            ("optimizer/exp_avg", self.optimizer.exp_avgs),
            ("optimizer/exp_avg_sq", self.optimizer.exp_avg_sqs),
        ):
            for name, tensor in zip(names, kept, strict=True):
                yield f"{kind}/{name}", tensor


def _tensor(tensors: dict[str, torch.Tensor], name: str, like: torch.Tensor) -> torch.Tensor:
    if name not in tensors:
        raise ValueError(f"the state lacks the tensor {name}")
    if tensors[name].shape != like.shape:
        raise ValueError(f"tensor {name} has shape {tuple(tensors[name].shape)}, not {tuple(like.shape)}")
    return tensors[name]


def estimate_step_seconds(spec: TrialSpec, device: torch.device, n_steps: int = 5) -> float:
    """Median seconds of one training step of the trial, on random tokens and after a step to warm up.

    At most ``n_steps`` are measured, and no more once they have taken ``_ESTIMATE_SECONDS`` together. What one thread
    of the cpu does is timed by what it works, since Ray may be starting on the same cores.
    """
    protocol = spec.protocol
    n_tokens = max(4 * protocol.context, 8_192)
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, n_tokens).astype(np.uint16)
    windows = evaluation_windows(tokens, protocol.context, protocol.context, salt="estimate")
    data = TrialData(tokens, tokens, windows, np.ones(spec.vocab_size, np.int64))
    stage = Stage(n_tokens, spec.stages[-1].dropout, (n_steps + 2,))
    run = TrialRun(replace(spec, stages=(stage,)), data, device)
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    run.advance(1)
    seconds: list[float] = []
    while len(seconds) < n_steps and sum(seconds) < _ESTIMATE_SECONDS:
        began = clock()
        run.advance(run.step + 1)
        seconds.append(clock() - began)
    return statistics.median(seconds)
