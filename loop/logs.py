"""The plain logs of a run: one file for each stage and process, each line whole in itself for grep.

logs/attempt-N/RRR-STAGE.log is written by the command that runs the campaign, for the first process; the
others under `accelerate launch` write RRR-STAGE.rank-K.log beside it.
"""

import logging
from pathlib import Path


class LineFormatter(logging.Formatter):
    """TIME LEVEL rank K NAME: MESSAGE, with all before MESSAGE again on each further line of it."""

    def __init__(self, rank: int = 0):
        super().__init__()
        self._head = logging.Formatter(f"%(asctime)s %(levelname)s rank {rank} %(name)s:")

    def format(self, record: logging.LogRecord) -> str:
        message_alone = {"exc_info": None, "exc_text": None, "stack_info": None}
        head = self._head.format(logging.makeLogRecord({**record.__dict__, **message_alone}))
        return "\n".join(f"{head} {line}" for line in super().format(record).splitlines() or [""])


def rank_file(log_file: Path, rank: int) -> Path:
    """The log of another process than the first, beside the stage's own."""
    return log_file.with_name(f"{log_file.stem}.rank-{rank}{log_file.suffix}")
