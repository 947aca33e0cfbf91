"""Configs from YAML and --set: what is read, and what the messages say when something is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loop.config import CampaignConfig, changed_keys
from loop.config_file import all_keys, load_config, shipped_configs
from loop.errors import UserError

MINIMAL = "name: small\ngenerator: {model: g}\njudge: {model: j}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def message(path: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    return str(error.value)


def test_every_shipped_config_is_valid():
    for name in shipped_configs():
        assert load_config(name).config == load_config(f"configs/{name}.yaml").config
        assert load_config(name).config.alarms is not None  # what users start from does not fool itself


def test_a_shipped_config_is_found_by_name_from_another_folder(tmp_path, monkeypatch):
    names = shipped_configs()
    if not names:
        pytest.skip("no config is shipped yet")
    monkeypatch.chdir(tmp_path)
    assert load_config(names[0]).config.name
    assert load_config(f"configs/{names[0]}.yaml").config.name


def test_a_file_on_disk_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text(MINIMAL)
    assert load_config("configs/quickstart.yaml").config.name == "small"


def test_overrides_are_yaml_and_apply_in_order(tmp_path):
    loaded = load_config(
        write(tmp_path, MINIMAL + "update: {num_steps: 7}\n"),
        [
            "update.learning_rate=3e-4",
            "sample.guided.eta=[0.2, 0.4]",
            "rounds=5",
            "rounds=6",
            "label.segments=no",
        ],
    )
    config = loaded.config
    assert (config.update.learning_rate, config.update.num_steps) == (3e-4, 7)
    assert config.sample.guided.eta == (0.2, 0.4)
    assert (config.rounds, config.label.segments) == (6, False)
    assert loaded.text.endswith("# --set rounds=6\n# --set label.segments=no\n")


def test_an_override_makes_a_section_that_the_file_leaves_out(tmp_path):
    assert load_config(write(tmp_path, MINIMAL), ["update.lora.rank=4"]).config.update.lora.rank == 4
    assert load_config(write(tmp_path, MINIMAL + "update:\n"), ["update.beta=2"]).config.update.beta == 2


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    assert (
        load_config(write(tmp_path, MINIMAL + "update: {learning_rate: 1e-4}\n")).config.update.learning_rate
        == 1e-4
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "update:\n  lerning_rate: 1\n",
            ["my.yaml, line 5", "update.lerning_rate", "did you mean update.learning_rate?"],
        ),
        ("updat: {beta: 1}\n", ["my.yaml, line 4: updat", "did you mean update?"]),
        ("sample:\n  takes_per_prompt: 3\n", ["line 5", "did you mean sample.fresh.takes_per_prompt?"]),
        ("sample:\n\n  fresh: {takes_per_prompt: many}\n", ["line 6", "valid integer", "'many'"]),
        ("sample: 3\n", ["line 4: sample", "not 3"]),
        ("sample: {guided: {eta: [0.9, 0.2]}}\n", ["sample.guided", "0.9 is above 0.2"]),
        ("gate: {alpha: .nan}\n", ["gate.alpha"]),
        ("data: {split: {train: [a.mp4], gate: 3}}\n", ["data.split", "all four parts"]),
        (
            "data: {split: {train: [a], calibrate: [b], gate: [c], report: [a]}}\n",
            ["a is listed more than once"],
        ),
        ("pair: {labels: oracle}\n", ["pair.labels: unknown key"]),
        ("seed: 1\nseed: 2\n", ["line 5", "seed is set a second time"]),
        ("seed: [1\n", ["not valid YAML"]),
        ("zzzz: 1\n", ["line 4: zzzz: unknown key; the keys here are: name, seed"]),
    ],
)
def test_messages_name_file_line_key_and_remedy(tmp_path, text, parts):
    said = message(write(tmp_path, MINIMAL + text))
    for part in parts:
        assert part in said


def test_a_union_gives_one_line(tmp_path):
    said = message(write(tmp_path, MINIMAL + "data: {split: {train: x}}\n"))
    assert said.count("\n") == 0 and "data.split.train: should be a valid integer" in said and " or " in said


def test_a_missing_key_is_named(tmp_path):
    assert "judge: this key is required" in message(write(tmp_path, "name: x\ngenerator: {model: g}\n"))
    assert "generator.model: this key is required" in message(write(tmp_path, "name: x\ngenerator: {}\n"))


@pytest.mark.parametrize("name", ["../x", "a b", ""])
def test_a_name_must_be_a_directory_name(tmp_path, name):
    assert "name" in message(write(tmp_path, MINIMAL), f"name='{name}'")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("rounds", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed.x=3", "seed is a single value"),
        ("update.betta=3", "--set update.betta=3: update.betta: unknown key; did you mean update.beta?"),
        ("seed=[", "not valid YAML"),
        ("seed=x", "--set seed=x: seed: should be a valid integer"),
    ],
)
def test_overrides_are_named_in_messages(tmp_path, override, part):
    assert part in message(write(tmp_path, MINIMAL + "seed: 3\n"), override)


def test_a_missing_file_says_what_there_is(tmp_path):
    assert "does not exist" in message(tmp_path / "nothing.yaml")
    assert "is a folder" in message(tmp_path)
    assert "mapping of sections" in message(write(tmp_path, "- 1\n"))
    assert "mapping of sections" in message(write(tmp_path, ""))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as text" in message(tmp_path / "b.yaml")


def test_the_resolved_config_reads_back(tmp_path):
    config = load_config(write(tmp_path, MINIMAL)).config
    assert CampaignConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_changed_keys():
    old = {"a": {"b": 1, "c": [1]}, "d": 1}
    assert changed_keys(old, {"a": {"b": 2, "c": [1]}, "d": 1}) == ["a.b (was 1, now 2)"]
    assert changed_keys(old, old) == []


def test_all_keys_reach_into_optional_sections():
    assert {"update.lora.rank", "pair.sources.fresh.max", "sample.sampling.num_steps"} <= set(all_keys())


def test_reading_a_config_imports_nothing_heavy():
    heavy = {"torch", "transformers", "diffusers", "datasets", "sklearn", "pandas", "pyarrow"}
    code = f"import sys, loop.config_file, loop.campaign, loop.status; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_how_many_takes_the_held_out_judge_sees_stands_in_no_older_fingerprint(tmp_path):
    path = write(tmp_path, MINIMAL)
    for num, seen in ((64, 32), (7, 7)):
        config = load_config(path, [f"evaluate.num_judged={num}"]).config
        assert config.part(("evaluate",)) == {
            "evaluate": {"part": "report", "num_seeds": 2, "num_judged": num, "num_ballots": 2}
        }
        assert config.evaluate.held_out_judged == seen
    given = load_config(path, ["evaluate.num_held_out_judged=5"]).config
    assert given.part(("evaluate",))["evaluate"]["num_held_out_judged"] == 5
    assert given.evaluate.held_out_judged == 5


def test_a_held_out_judge_is_a_judge_of_its_own_and_stands_in_no_older_fingerprint(tmp_path):
    path = write(tmp_path, MINIMAL)
    alone = load_config(path).config
    assert "held_out_judge" not in alone.model_dump() and alone.measuring_judge is alone.judge
    both = load_config(path, ["held_out_judge.model=other"]).config
    assert both.part(("held_out_judge", "gate"))["held_out_judge"]["model"] == "other"
    assert both.measuring_judge.model == "other" and both.judge.model == "j"
    assert "held_out_judge.dimensions lacks overall" in message(
        path, "held_out_judge.model=other", "held_out_judge.dimensions=[motion]"
    )
