"""`retake export-vbench`: a round's evaluated takes laid out so that the official VBench tool runs on them.

What VBench asks for is in its repository (github.com/Vchitect/VBench, at commit 45e79ec):
- vbench/__init__.py, build_full_info_json: the folder holds videos alone; in the mode custom_input the prompt
  file is a JSON object from each file's name to its prompt, and every video must be in it; in the mode
  vbench_standard a video is found by its name, PROMPT-INDEX.mp4 with INDEX from 0 to 4.
- vbench/utils.py, get_prompt_from_filename: only the last -NUMBER of a name is cut off.
- evaluate.py opens the prompt file in the locale's encoding: so ours is ASCII.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shlex
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.curves import evaluated_rounds
from loop.errors import UserError
from loop.measured import read_columns
from loop.store import Store, read_manifest

VIDEOS, PROMPTS, CLIPS = "videos", "prompts.json", "clips.csv"
# those that VBench's README names for videos and prompts of one's own
CUSTOM = (
    *("subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree"),
    *("aesthetic_quality", "imaging_quality"),
)
STANDARD_TAKES = 5  # a prompt, in VBench's protocol
FILTERED = "temporal_flickering"  # needs 25 takes and the static filter first, says its prompts/README.md
_LONGEST_NAME = 255  # bytes, in all common file systems
_UNUSABLE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')  # in a name, on one file system or another
_UNQUOTABLE = re.compile(r'["$`\\]')  # in a path: `vbench evaluate` puts it into a shell's double quotes
_EXISTS = (errno.EEXIST, errno.ENOTEMPTY)


@dataclass(frozen=True)
class Exported:
    """out: the folder. standard: prompts of VBench's own list, None where no list was given.

    renamed: clips whose name is not their prompt, since no file can be called so.
    """

    out: Path
    num_clips: int
    num_prompts: int
    fewest_takes: int
    renamed: int
    copied: int
    standard: int | None
    complete: tuple[str, ...]  # VBench dimensions of which all prompts are there


def export_vbench(run: Path, round: int, out: Path, full_info: Path | None = None) -> Exported:
    """Lay out the takes that evaluate filmed in `round`: out/videos, out/prompts.json and out/clips.csv.

    Clips are hard links to the run's files where the file system has them, else copies. full_info: VBench's
    VBench_full_info.json, to tell which of its own prompts are there. `out` appears whole or not at all.
    Raises UserError for a round without an evaluation, for a clip that is gone or damaged, for a list that
    is none, and for an `out` that exists and is not empty.
    """
    takes, folder = _takes(run, round)
    official = None if full_info is None else _read_full_info(full_info)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another --out")
    if _UNQUOTABLE.search(str(out.resolve())):
        raise UserError(
            f'--out {out.resolve()}: VBench cannot take a path with ", $, ` or \\; choose another'
        )
    part = out.absolute().with_name(f".{out.absolute().name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / VIDEOS).mkdir(parents=True)
    rows, copied, renamed = [], 0, 0
    indices: dict[str, int] = defaultdict(int)
    for take in takes:
        prompt = take["prompt"]
        index, indices[prompt] = indices[prompt], indices[prompt] + 1
        name, linked = _place(folder / take["file"], part / VIDEOS, prompt, index)
        copied += not linked
        renamed += name != f"{prompt}-{index}.mp4"
        rows.append({"file": name, **{key: take[key] for key in ("prompt", "take_id", "prompt_id", "seed")}})
    prompts = {row["file"]: row["prompt"] for row in rows}
    (part / PROMPTS).write_text(json.dumps(prompts, indent=1) + "\n", encoding="ascii")
    (part / CLIPS).write_text(_csv(rows), encoding="utf-8")
    if problems := layout_problems(part):
        shutil.rmtree(part)
        raise UserError(f"{out}: {problems[0]}; choose an --out on another file system")
    os.replace(part, out)
    known = None if official is None else sum(prompt in official for prompt in indices)
    return Exported(
        out, len(rows), len(indices), min(indices.values()), renamed, copied, known,
        _complete(official or {}, indices),
    )  # fmt: skip


def layout_problems(out: Path) -> list[str]:
    """What VBench's own reading of the folder would refuse or take for another prompt: [] for nothing.

    Its rules in the mode custom_input, restated from vbench/__init__.py, build_full_info_json.
    """
    prompts = json.loads((out / PROMPTS).read_text(encoding="ascii"))
    there = set(os.listdir(out / VIDEOS))
    problems = [f"{name} is no .mp4" for name in sorted(there) if not name.endswith(".mp4")]
    problems += [f"{name} has no prompt" for name in sorted(there - set(prompts))]
    problems += [f"{name} has a prompt and is not there" for name in sorted(set(prompts) - there)]
    problems += [f"{name} is no name" for name in sorted(prompts) if name != os.path.basename(name)]
    return problems


def commands(found: Exported) -> list[str]:
    """Lines of a shell that run VBench on the export, in its own environment."""
    videos, prompts, results = (
        shlex.quote(str((found.out / name).resolve())) for name in (VIDEOS, PROMPTS, "results")
    )
    lines = [
        f"for dimension in {' '.join(CUSTOM)}; do",
        f"  vbench evaluate --dimension $dimension --videos_path {videos} --prompt_file {prompts} \\",
        f"    --mode custom_input --output_path {results}",
        "done",
    ]
    if found.complete:
        lines += [
            f"for dimension in {' '.join(found.complete)}; do",
            f"  vbench evaluate --dimension $dimension --videos_path {videos} --mode vbench_standard \\",
            f"    --output_path {results}",
            "done",
        ]
    return lines


def remarks(found: Exported) -> list[str]:
    """What to know before reading VBench's numbers of this export."""
    told = [f"{found.num_clips} clips of {found.num_prompts} prompts in {found.out}"]
    if found.copied:
        told.append(f"{found.copied} were copied, since no hard link can be made there")
    if found.renamed:
        told.append(
            f"{found.renamed} bear another name than their prompt, which no file could bear; "
            f"{PROMPTS} has their prompts"
        )
    if found.standard is not None:
        told.append(f"{found.standard} of {found.num_prompts} prompts are of VBench's own list")
    if found.complete and found.fewest_takes < STANDARD_TAKES:
        told.append(
            f"VBench's protocol has {STANDARD_TAKES} takes of a prompt, here are {found.fewest_takes}: these "
            "numbers are none for its leaderboard (evaluate.num_seeds)"
        )
    if FILTERED in found.complete:
        told.append(f"{FILTERED} is for still clips: run VBench's static filter first (docs/vbench.md)")
    return told


def _takes(run: Path, round: int) -> tuple[list[dict[str, Any]], Path]:
    """The round's evaluated takes and their folder, every clip as long as it was committed."""
    rounds = evaluated_rounds(run)
    if round not in rounds:
        have = ", ".join(map(str, rounds)) or "none"
        raise UserError(f"{run} has no evaluated clips of round {round}; evaluated so far: {have}")
    folder = Store(run).artefact(round, "evaluate")
    manifest = read_manifest(folder)
    assert manifest is not None, "the round is evaluated"
    takes = read_columns(folder / "takes.parquet", ("take_id", "prompt_id", "prompt", "seed", "file"))
    if not takes:
        raise UserError(f"{folder} has no takes to export")
    for take in takes:
        path = folder / take["file"]
        if not path.is_file():
            raise UserError(f"{path} is gone: it was pruned or deleted; export a round that has its clips")
        if path.stat().st_size != manifest.files[take["file"]]["size"]:
            raise UserError(f"{path} is damaged: it has another size than when it was committed")
    return takes, folder


def _place(clip: Path, videos: Path, prompt: str, index: int) -> tuple[str, bool]:
    """Put a clip into the folder: its name there, and whether it is a hard link."""
    plain, other = f"{prompt}-{index}.mp4", f"{_short(prompt)}-{index}.mp4"
    # a file system that takes upper and lower case for the same has the first of two such prompts alone
    for name in (plain, other) if _is_name(plain) else (other,):
        target = videos / name
        if os.path.lexists(target):
            continue
        try:
            os.link(clip, target)
            return name, True
        except OSError as error:
            if error.errno in _EXISTS:
                continue
            shutil.copyfile(clip, target)  # another file system, or one without links
            return name, False
    raise AssertionError(f"two clips are both called {other}")


def _is_name(name: str) -> bool:
    """Whether every common file system takes it, and a shell or a listing does not trip over it."""
    fits = len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME
    return fits and name.isprintable() and not _UNUSABLE.search(name) and name[0] not in " .-~"


def _short(prompt: str) -> str:
    """A name for what cannot be one: its first words, and a digest that tells it from any other prompt."""
    words = "_".join(re.findall(r"[A-Za-z0-9]+", prompt))[:60]
    return f"{words or 'prompt'}_{hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_full_info(path: Path) -> dict[str, set[str]]:
    """Dimensions by prompt, of VBench_full_info.json. Raises UserError for anything else."""
    found: dict[str, set[str]] = defaultdict(set)
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            found[entry["prompt_en"]] |= set(entry["dimension"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--full-info {path}: not VBench's list of prompts ({error}); it is vbench/VBench_full_info.json "
            "of its repository"
        ) from error
    return found


def _complete(official: dict[str, set[str]], prompts: dict[str, int]) -> tuple[str, ...]:
    """The dimensions of which every prompt of the list was filmed."""
    dimensions = dict.fromkeys(name for names in official.values() for name in sorted(names))
    return tuple(
        name for name in dimensions if all(p in prompts for p, names in official.items() if name in names)
    )
