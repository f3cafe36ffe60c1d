"""``python -m tune_dd.corpus``: fetch a regime's text, look at what is there, verify it, tokenize it.

Exit codes: 0 done, 2 something to mend (one line on standard error says what), 130 Ctrl-C (what came of a
file is kept).
"""

from __future__ import annotations

import sys

from tune_dd.errors import UserError
from tune_dd.streams import run_main


def main(argv: list[str] | None = None) -> int:
    try:
        from tune_dd.corpus.command import run_command

        return run_command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what came of a file is kept, and the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run_main(main))
