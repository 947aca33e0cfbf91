"""People as a judge: answers that were given beforehand, read from a .csv or .parquet file."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from reward.config import JudgeConfig
from reward.question import ANSWERS, Answer, Ask, ClipReader, Question, Reply, Vote, mirrored, vote_of

_CLIPS = ("first_id", "second_id", "prompt")
Key = tuple[str, ...]  # (question id,) or (id of the first clip, id of the second, prompt)


class HumanJudge:
    """A judge for `judge.type: human`; `judge.answers` names the file.

    Columns: question_id, or first_id, second_id and prompt (a line with a question_id needs no more), and
    one for each of `judge.dimensions` with first, second or tie. One answer serves every ballot and both
    orders. A question that the file does not answer in every dimension gets abstentions: `unanswered`.
    """

    def __init__(self, config: JudgeConfig) -> None:
        """Raises ValueError naming the file and line for what cannot be read."""
        assert config.answers is not None, "JudgeConfig requires answers for type human"
        self.file = Path(config.answers).expanduser()
        self.dimensions = config.dimensions
        self.answers = read_answers(self.file, config.dimensions)

    def vote(self, asks: Sequence[Ask]) -> list[Vote]:
        """One vote for each ask, in the same order, without a reasoning."""
        return [self._one(ask) for ask in asks]

    def _one(self, ask: Ask) -> Vote:
        found = self._find(ask.question)
        if found is None:
            return vote_of(ask, Reply(None, "", "unanswered"))
        return vote_of(ask, Reply(mirrored(found) if ask.swapped else dict(found), "", None))

    def _find(self, question: Question) -> Mapping[str, Answer] | None:
        """What people answered, in the question's order."""
        one, other = _id(question.first), _id(question.second)
        prompt = question.prompt.strip()
        found = self.answers.get((question.id,)) or self.answers.get((one, other, prompt))
        if found is None:
            turned = self.answers.get((other, one, prompt))
            found = None if turned is None else mirrored(turned)
        if found is None or not set(question.dimensions) <= found.keys():
            return None
        return {name: found[name] for name in question.dimensions}

    def identity(self) -> str:
        """sha256 of the file and the dimensions."""
        digest = hashlib.sha256("\x00".join(self.dimensions).encode())
        digest.update(self.file.read_bytes())
        return f"human:{digest.hexdigest()}"

    def close(self) -> None:
        pass


def read_answers(file: Path, dimensions: Sequence[str]) -> dict[Key, dict[str, Answer]]:
    """The answers of a file by question; empty cells are left out.

    Raises ValueError naming file, line and column for a file that cannot be read, a missing column, another
    word than first, second and tie, a line that names no question, and a question that is answered twice.
    """
    found: dict[Key, dict[str, Answer]] = {}
    for line, values in _lines(file):
        where = f"judge.answers: {file}, line {line}"
        missing = [name for name in dimensions if name not in values]
        if missing:
            raise ValueError(f"judge.answers: {file}: no column {missing[0]!r}; every dimension needs one")
        answers = {name: _answer(where, name, values[name]) for name in dimensions if values[name]}
        for key in _keys(where, values):
            if key in found:
                raise ValueError(f"{where}: this question is answered on an earlier line, too; keep one")
            found[key] = answers
    return found


def _answer(where: str, column: str, word: str) -> Answer:
    for answer in ANSWERS:
        if word == answer:
            return answer
    raise ValueError(f"{where}: {word!r} in column {column!r} is no answer; write {', '.join(ANSWERS)}")


def _keys(where: str, values: Mapping[str, str]) -> list[Key]:
    if values.get("question_id"):
        return [(values["question_id"],)]
    if not all(values.get(name) for name in _CLIPS):
        raise ValueError(f"{where}: names no question; give question_id, or all of {', '.join(_CLIPS)}")
    return [tuple(values[name] for name in _CLIPS)]


def _lines(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line or row number, value by column); what is missing is empty."""
    if file.suffix not in (".csv", ".parquet"):
        raise ValueError(f"judge.answers: {file}: give a .csv or a .parquet")
    if not file.is_file():
        raise ValueError(f"judge.answers: {file}: no such file; docs/judges.md says how to write it")
    return _parquet(file) if file.suffix == ".parquet" else _csv(file)


def _csv(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restkey="", restval="", strict=True)
            for values in reader:
                if values.pop("", None):
                    raise ValueError(
                        f"judge.answers: {file}, line {reader.line_num}: more values than columns; "
                        "put a text with commas between double quotes"
                    )
                yield reader.line_num, {name.strip(): str(text).strip() for name, text in values.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"judge.answers: {file}: cannot read it ({error}); save it as UTF-8 CSV") from None


def _parquet(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(file).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"judge.answers: {file}: cannot read it as Parquet ({error}); write it again"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield number, {name: "" if value is None else str(value).strip() for name, value in row.items()}


def _id(reader: ClipReader) -> str:
    """The id that votes.parquet gives a clip: its own, or its file's name."""
    return getattr(reader, "clip_id", None) or Path(reader.key).name
