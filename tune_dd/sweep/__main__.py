"""``python -m tune_dd.sweep REGIME``: measure which dropout is best, on this machine, and say so.

    python -m tune_dd.sweep --quick             24 trials on the embedded corpus, cpu, some two minutes
    python -m tune_dd.sweep owt --dry-run       what the search would cost
    python -m tune_dd.sweep owt                 the search
    python -m tune_dd.sweep owt --resume        go on after anything that stopped it

Exit codes: 0 every planned trial finished, 2 something to mend (one line on standard error says what),
3 some trials crashed, 128 + n stopped by signal n (130 is Ctrl-C).
"""

from __future__ import annotations

import os
import sys

from tune_dd.errors import UserError
from tune_dd.streams import run_main


def main(argv: list[str] | None = None) -> int:
    try:
        # Imported late, so that a failing import of a heavy library is reported like any failure.
        from tune_dd.sweep.command import run_command

        return run_command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Once there is a run the command names what goes on with it.
        print("interrupted before a search was begun or taken up: nothing is lost", file=sys.stderr)
        return 130
    except OSError as error:
        what = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        print(f"error: {what}; mend that and give the command again with --resume", file=sys.stderr)
        return 2


if __name__ == "__main__":
    code = run_main(main)
    # Everything is written and ended, and to take torch apart as Python exits takes a third of a second. Where Ctrl-C
    # came inside one of its imports, Python would also end by the signal instead of the code.
    os._exit(code)
