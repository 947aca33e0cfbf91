"""Which files of an artefact `retake prune` has freed: pruned.json beside its manifest.

It appears, whole, before the first file goes. So a kill leaves files too many, which the next prune removes,
and never a file that is gone without a word. It belongs to the artefact's folder: whoever moves that away and
makes the artefact again has all of its files again.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from loop.errors import UserError
from loop.sizes import in_words

FILE = "pruned.json"


@dataclass(frozen=True)
class Pruned:
    """What is gone from a run: files of committed artefacts, their bytes, and the rounds they were of."""

    num_files: int
    num_bytes: int
    rounds: list[int]

    def __str__(self) -> str:
        rounds = ", ".join(map(str, self.rounds))
        return (
            f"{self.num_files:,} files ({in_words(self.num_bytes)}) of round{'s'[: len(self.rounds) > 1]} "
            f"{rounds}"
        )


def read_pruned(artefact: Path) -> dict[str, int]:
    """Bytes by path below the artefact; {} where nothing was pruned. Raises UserError for a damaged file."""
    path = artefact / FILE
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): int(size) for name, size in files.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is damaged; it says which files were pruned: restore it, or move {artefact} away"
        ) from None


def was_pruned(path: Path) -> bool:
    """Whether a file that is not there was pruned: the artefact that it is of says so."""
    folder = next((folder for folder in path.parents if (folder / FILE).is_file()), None)
    return folder is not None and path.relative_to(folder).as_posix() in read_pruned(folder)


def pruned_in(root: Path) -> Pruned | None:
    """All that was pruned in a run, None where nothing was."""
    by_round: dict[int, list[int]] = {}
    for path in sorted(root.glob(f"round-[0-9]*/[!.]*/{FILE}")):
        by_round.setdefault(int(path.parent.parent.name[6:]), []).extend(read_pruned(path.parent).values())
    if not by_round:
        return None
    sizes = [size for of in by_round.values() for size in of]
    return Pruned(len(sizes), sum(sizes), list(by_round))
