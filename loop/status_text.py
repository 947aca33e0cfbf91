"""A run's status as lines: for one look, for a screen that is drawn again, and for a pipe."""

from loop.progress import in_words
from loop.status import RunningStage, Status


def status_lines(status: Status, all_rounds: bool = True) -> list[str]:
    """Everything, or with all_rounds False only the stages of the round that is under way (the last one)."""
    lines = [f"{status.name}: {status.state}, {status.rounds_done} of {status.rounds} rounds done"]
    if status.state == "stopped":
        lines.append(f"stopped by {status.reason}; the same command resumes it")
    elif status.state in ("failed", "done"):
        lines += status.reason.splitlines()
    lines.append(
        f"in force: generator of round {status.generator_in_force}, judge of round {status.judge_in_force}"
    )
    if status.state != "done":
        lines.append(f"time left: {time_left(status)}")
    if status.device_hours:
        lines.append(f"device-hours: {status.device_hours:.2f} so far")
    if status.pruned:
        lines.append(f"pruned: {status.pruned}")
    shown = status.stages if all_rounds else [s for s in status.stages if s.round == _under_way(status)]
    for stage in shown:
        line = f"  round {stage.round}  {stage.stage:<12} {stage.state:<10}"
        if stage.state == "running" and status.running is not None:
            line += progress_words(status.running)
        elif stage.seconds is not None:
            line += f"{stage.seconds:8.1f} s"
            if stage.devices:
                line += f" on {stage.devices} device{'s'[: stage.devices > 1]}"
        lines.append(line)
    return lines + [f"  round {a['round']}  alarm {a['name']}: {a['reason']}" for a in status.alarms]


def time_left(status: Status) -> str:
    if status.seconds_left is None:
        return status.seconds_left_rests_on
    return f"about {in_words(status.seconds_left)} of the campaign ({status.seconds_left_rests_on})"


def progress_words(running: RunningStage) -> str:
    """ "8/40 clips, 12 s so far, about 48 s left": what is known of it."""
    known = [f"{running.done}/{running.total} {running.unit}"] if running.unit else []
    known.append(f"{in_words(running.seconds)} so far")
    if running.seconds_left is not None:
        known.append(f"about {in_words(running.seconds_left)} left")
    return ", ".join(known)


def summary_line(status: Status) -> str:
    """One line for a pipe: what is going on."""
    text = f"{status.name}: {status.state}, {status.rounds_done} of {status.rounds} rounds done"
    if status.running is not None:
        text += f", round {status.running.round} {status.running.stage} {progress_words(status.running)}"
    if status.state in ("failed", "stopped"):
        text += f": {' '.join(status.reason.split())}"
    elif status.state != "done" and status.seconds_left is not None:
        text += f", campaign about {in_words(status.seconds_left)}"
    return text


def _under_way(status: Status) -> int:
    return next((s.round for s in status.stages if s.state != "committed"), status.rounds)
