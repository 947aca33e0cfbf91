"""Who may import whom, and that the oracle and held-out parts cannot reach training."""

import ast
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("loop", "reward", "generator")
TRAINING = ("prepare", "train_judge", "judge_gate", "sample", "label", "pair", "update", "gate")


def imports(path: Path) -> set[str]:
    """Everything that a file names in an import, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0, f"{path}: import from the full name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reachable(start: str) -> set[str]:
    """Modules of this project that importing `start` leads to, through functions' own imports too."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        file = ROOT / Path(*name.split("."))
        path = file.with_suffix(".py") if file.with_suffix(".py").is_file() else file / "__init__.py"
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        todo += [name.rpartition(".")[0], *(n for n in imports(path) if n.split(".")[0] in ROOMS)]
    return seen


@pytest.mark.parametrize(
    ("room", "forbidden"), [("reward", ("loop", "generator")), ("generator", ("loop", "reward"))]
)
def test_imports_run_one_way(room, forbidden):
    for path in (ROOT / room).rglob("*.py"):
        wrong = {n for n in imports(path) if n.split(".")[0] in forbidden}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("stage", TRAINING)
def test_no_training_stage_reaches_the_oracle(stage):
    assert "loop.embedded.oracle" not in reachable(f"loop.steps.{stage}")


def test_only_evaluate_names_the_oracle():
    allowed = {"loop/embedded/oracle.py", "loop/steps/evaluate.py"}
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        if path.relative_to(ROOT).as_posix() not in allowed:
            assert not any("oracle" in name for name in imports(path)), f"{path} imports the oracle"


def test_evaluate_does_reach_it():
    """Else the tests above would pass for a wrong reason."""
    assert "loop.embedded.oracle" in reachable("loop.steps.evaluate")
    assert "loop.steps.common" in reachable("loop.steps.update")


def test_the_shipped_weights_are_trained_on_training_captions_alone():
    from loop.embedded import make_weights, world

    _, scenes = make_weights.random_clips(200, np.random.default_rng(0))
    assert {world.part_of(s.colour, s.shape, s.direction) for s in scenes} == {"train"}

    parts = [world.part_of(*c) for c in world.combinations()]
    assert {p: parts.count(p) for p in set(parts)} == {"train": 48, "calibrate": 12, "gate": 12, "report": 24}
