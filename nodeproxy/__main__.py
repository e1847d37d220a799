"""`nodeproxy`, and `python -m nodeproxy`: runs a command and turns what it raises into one line and an exit status.

Status 0: done.  1: it says no, or it failed.  2: used wrongly.  130: Ctrl-C.  An exception that is not of `nodeproxy.errors` is a
defect and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from nodeproxy.cli.commands import nodeproxy
from nodeproxy.cli.output import printable
from nodeproxy.errors import NodeproxyError

# 128 + SIGINT, what a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130
# Of a write to where standard output goes.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    try:
        # Without standalone mode click returns the status of `ctx.exit`, and raises what it would print itself.
        status = nodeproxy.main(arguments, prog_name="nodeproxy", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return 2
    except click.ClickException as exc:
        hint = f"\nTry '{exc.ctx.command_path} --help'." if isinstance(exc, click.UsageError) and exc.ctx is not None else ""
        return _fail(exc.format_message() + hint, exc.exit_code)
    except NodeproxyError as exc:
        return _fail(str(exc), 1)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # the reader (`head`, say) has gone
        return 1
    except OSError as exc:
        if exc.errno not in _NO_ROOM or exc.filename is not None:
            raise
        _drop_output()
        return _fail(f"the output can't be written: {exc.strerror}; make room for it", 1)
    return status if isinstance(status, int) else 0


def _drop_output() -> None:
    """What is still buffered must not raise once more when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> int:
    # An error hands on what others said: an agent, an API server, a file.
    click.echo(f"nodeproxy: error: {printable(message)}", err=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
