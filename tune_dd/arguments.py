"""Command-line parsing whose every refusal is one line, as for all else that a user can mend."""

from __future__ import annotations

import argparse
from typing import NoReturn

from tune_dd.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")
