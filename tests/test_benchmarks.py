"""The control arms are what they say: valid settings, and paired differences on equal prompts and seeds."""

import pytest

from benchmarks.arms import ARMS, paired
from benchmarks.dpo_step import counted
from loop.config_file import load_config


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_setting_of_the_quickstart(arm):
    ours = load_config("configs/quickstart.yaml", []).config
    control = load_config("configs/quickstart.yaml", ARMS[arm]).config
    assert control.update.num_steps == ours.update.num_steps  # equal updates
    assert control.update.learning_rate == ours.update.learning_rate
    assert (control.pair.control == "random_labels") == (arm == "random_labels")
    assert (control.update.method == "supervised") == (arm == "supervised")
    trains_on_pairs = control.update.preference_weight > 0 and control.update.method == "preference"
    assert trains_on_pairs == (arm not in ("likelihood", "supervised"))


def test_differences_are_paired():
    one = {f"{p}-{s}": (p, 0.1 * i + 0.2) for i, p in enumerate("abcd") for s in range(3)}
    other = {name: (p, value - 0.2) for name, (p, value) in one.items()}
    found = paired(one, other)
    assert found.value == pytest.approx(0.2) and found.low == pytest.approx(0.2) and found.num == 12


def test_forwards_of_a_step_are_counted_as_by_hand():
    """A LoRA's backward counts one forward, that of full weights two; a quarter of the reference is paid."""
    assert counted("common", 1, 3, 0.25) == counted("realdpo", 1, 3, 0.25) == 2 * (1 + 1 + 1)
    assert counted("ours-1", 1, 3, 0.25) == pytest.approx(2 * 2.25)
    assert counted("ours-n", 1, 3, 0.25) / counted("realdpo", 1, 3, 0.25) == pytest.approx(0.5)
    assert counted("ours-1", 2, 3, 0.25) / counted("common", 2, 3, 0.25) == pytest.approx(0.8125)
