"""How a process of ours logs: a line an event, for people or, as JSON, for collectors.  It must not know what is logged."""

from __future__ import annotations

import json
import logging
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


def _quote(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + "".join(traceback.format_exception(*record.exc_info))
        record.exc_info = record.exc_text = None  # it is in the message, so that it is one line
    record.quoted = json.dumps(message)
    return True
