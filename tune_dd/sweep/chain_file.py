"""What a chain remembers: ``chain.json`` in a folder of its own."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dd import artifacts
from tune_dd.errors import UserError
from tune_dd.regimes import Scale
from tune_dd.sweep.options import choose_regime, from_folder, parse, repeated, scale_name
from tune_dd.sweep.phases import check_stream
from tune_dd.sweep.runs import group_name, shown_path

CHAIN = "chain.json"
STEPS = ("screen", "confirm", "calibrate", "law", "stream")  # what is decided or run, in order


@dataclass
class Chain:
    """A chain on disk.

    Attributes:
        options: the regime, scale, device and text as given, repeated for every phase.
        anchors: paths by hand for the stream, as given.
        ladder: the models that are screened, as given; None for the scale's.
        law: the form that is fitted, as given; None for the default.
        runs: phase -> its run's folder, seen from the chain's own, so that both can be moved together.
        decisions: what the gates decided and whether a law was found, in order.
        folder: the working folder that the options were given in.
    """

    path: Path
    options: list[str]
    anchors: list[str]
    ladder: str | None
    law: str | None
    runs: dict[str, str]
    decisions: list[dict[str, Any]]
    finished: bool = False
    folder: str = ""

    @classmethod
    def of(cls, args: argparse.Namespace) -> Chain:
        """A new one, without a folder yet.

        Raises:
            UserError: the regime has no such scale, or the stream that the chain ends with cannot be made.
        """
        law = args.law[0] if args.law else None
        chain = cls(
            Path(), repeated(args), args.anchors or [], args.models, law, {}, [], folder=os.path.realpath(Path.cwd())
        )
        check_stream(parse([*chain.options, "--phase", "stream", *chain.by_hand]), chain.scale)
        return chain

    def write(self) -> None:
        artifacts.write_json(
            self.path / CHAIN,
            {
                "schema": artifacts.SCHEMA,
                "options": self.options,
                "anchors": self.anchors,
                "ladder": self.ladder,
                "law": self.law,
                "runs": self.runs,
                "decisions": self.decisions,
                "finished": self.finished,
                "folder": self.folder,
            },
        )

    @classmethod
    def read(cls, path: Path) -> Chain:
        """Raises UserError if there is no chain or it is damaged."""
        data = artifacts.read_json(path / CHAIN)
        try:
            fields = {name: data[name] for name in ("options", "anchors", "ladder", "runs", "decisions", "finished")}
            # Those of former versions lack these two.
            return cls(path, **fields, law=data.get("law"), folder=data.get("folder", ""))
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path / CHAIN} is damaged: start a new chain with --phase all") from None

    def decide(self, step: str, chosen: str | None, reason: str) -> dict[str, Any]:
        """Record a decision; what it was before stays where a later phase was begun on it.

        It may change where crashed trials were taken up again.
        """
        former = next((entry for entry in self.decisions if entry["step"] == step), None)
        built_on = any(later in self.runs for later in STEPS[STEPS.index(step) + 1 :])
        changed = former is not None and (former["chosen"], former["reason"]) != (chosen, reason)
        if former is None or (changed and not built_on):
            time = datetime.datetime.now().isoformat(timespec="seconds")
            before = STEPS[: STEPS.index(step)]
            self.decisions = [entry for entry in self.decisions if entry["step"] in before]
            self.decisions.append({"step": step, "chosen": chosen, "reason": reason, "time": time})
            self.write()
        return next(entry for entry in self.decisions if entry["step"] == step)

    def run(self, phase: str) -> Path:
        """The folder of a phase's run."""
        return (self.path / self.runs[phase]).resolve()

    def begin(self, phase: str, run: Path) -> None:
        self.runs[phase] = os.path.relpath(run.resolve(), self.path.resolve())
        self.write()

    @property
    def words(self) -> list[str]:
        """The options as they are given in the folder that we are in now."""
        here, there = os.path.realpath(Path.cwd()), Path(self.folder)
        if here == self.folder or not there.is_absolute() or not there.is_dir():
            return self.options
        return repeated(from_folder(parse(self.options), there))

    @property
    def by_hand(self) -> list[str]:
        return [word for text in self.anchors for word in ("--anchors", text)]

    @property
    def scale(self) -> Scale:
        begun = parse(self.words)
        return choose_regime(begun).scale(scale_name(begun))

    @property
    def has_law(self) -> bool:
        return any(entry["step"] == "law" and entry["chosen"] for entry in self.decisions)

    @property
    def resume_command(self) -> str:
        return f"python -m tune_dd.sweep --phase all --resume {shlex.quote(shown_path(self.path))}"


def unfinished_chains(storage: Path, regime: str, scales: Sequence[str]) -> list[Chain]:
    """Those of a regime that can be resumed, oldest first; ``--list`` tells which are damaged."""
    found = []
    for scale in scales:
        for file in storage.glob(f"{group_name(regime, 'all', scale)}/*/{CHAIN}"):
            with contextlib.suppress(UserError):
                found.append(Chain.read(file.parent))
    return sorted((chain for chain in found if not chain.finished), key=lambda chain: chain.path.name)
