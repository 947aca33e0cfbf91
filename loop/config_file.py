"""From YAML and `--set key=value` to a CampaignConfig; every error names file, line, key and remedy."""

import difflib
import importlib.resources
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from loop.config import CampaignConfig
from loop.errors import UserError


@dataclass(frozen=True)
class LoadedConfig:
    """`text` is the file as given, followed by the overrides as comments: what campaign.yaml stores.

    `file` is where it was read, None for a shipped config.
    """

    config: CampaignConfig
    text: str
    file: Path | None = None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number, as YAML 1.2 does; PyYAML alone reads a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read `source` (a path, or the name of a shipped config) and apply `key=value` overrides in order.

    Raises UserError for a missing file, YAML that does not parse, and keys or values that are not valid.
    """
    loaded = _load(*_read_source(str(source), ("",)), overrides, {})
    return replace(loaded, file=Path(source)) if Path(source).is_file() else loaded


def load_judge_config(source: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """As load_config, for a command that needs a judge alone, and its clips.

    It finds configs/judges/NAME.yaml by NAME, too, and does without the name and the generator of a campaign.
    """
    return _load(*_read_source(str(source), ("judges/", "")), overrides, _JUDGE_ALONE)


# what a campaign needs and a judge does not; no command that only asks a judge reads it
_JUDGE_ALONE: dict[str, Any] = {"name": "judge", "generator": {"model": "embedded:tiny-wan"}}


def _load(text: str, origin: str, overrides: Sequence[str], defaults: dict[str, Any]) -> LoadedConfig:
    data, places = _parse(text, origin)
    for override in overrides:
        _apply(data, places, override)
    data = {**defaults, **data}
    try:
        config = CampaignConfig.model_validate(data)
    except ValidationError as error:
        raise UserError("\n".join(_explain(error, data, places, origin))) from None
    if overrides:
        text = text.rstrip("\n") + "\n" + "".join(f"# --set {override}\n" for override in overrides)
    return LoadedConfig(config, text)


def shipped_configs(folder: str = "") -> list[str]:
    """Names of the configs in the package data; in its folder "judges/" are those of judges alone."""
    files = importlib.resources.files("configs").joinpath(folder)
    if not files.is_dir():
        return []
    return sorted(
        entry.name.removesuffix(".yaml") for entry in files.iterdir() if entry.name.endswith(".yaml")
    )


def _read_source(source: str, folders: Sequence[str]) -> tuple[str, str]:
    """(text, what to call it in messages) of a file, or of a shipped config in one of `folders`."""
    path = Path(source)
    if path.is_dir():
        raise UserError(f"{source} is a folder; name the YAML file inside it")
    try:
        if path.exists():
            return path.read_text(encoding="utf-8"), source
        name = re.sub(r"^configs/|\.ya?ml$", "", source)
        for folder in folders:
            inner = name.removeprefix(folder)
            if inner in shipped_configs(folder):
                shipped = importlib.resources.files("configs").joinpath(f"{folder}{inner}.yaml")
                return shipped.read_text(encoding="utf-8"), f"configs/{folder}{inner}.yaml"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read as text: {error}") from None
    names = [name for folder in folders for name in shipped_configs(folder)]
    hint = _did_you_mean(name, names) or f"; shipped configs: {', '.join(names) or 'none'}"
    raise UserError(f"config file {source} does not exist{hint}")


def _parse(text: str, origin: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Plain data, and for every dotted key the place ("FILE, line N") where it stands."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        data = loader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{origin}, line {mark.line + 1}" if mark else origin
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{origin}: not valid YAML: {error}") from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise UserError(f"{origin}: a config is a mapping of sections, this is {_kind(data)}")
    places: dict[str, str] = {}
    for key, line in _key_lines(root):
        if key in places:
            raise UserError(
                f"{origin}, line {line}: {key} is set a second time (first: {places[key]}); keep one"
            )
        places[key] = f"{origin}, line {line}"
    return data, places


def _key_lines(node: yaml.Node | None, at: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = f"{at}{key_node.value}"
            yield key, key_node.start_mark.line + 1
            yield from _key_lines(value_node, f"{key}.")


def _apply(data: dict[str, Any], places: dict[str, str], override: str) -> None:
    """Set one `a.b=value` in place; the value is read as YAML."""
    key, equals, value = override.partition("=")
    key = key.strip()
    names = key.split(".")
    if not equals or not all(names):
        raise UserError(f"--set {override}: expected key=value, as in --set update.learning_rate=3e-4")
    try:
        parsed = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {value!r} is not valid YAML; quote it") from None
    section = data
    for name in names[:-1]:
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise UserError(f"--set {override}: {name} is a single value, it has no keys")
    section[names[-1]] = parsed
    for known in [known for known in places if known == key or known.startswith(f"{key}.")]:
        del places[known]
    # what stands in place of a variable's name may be the key itself
    places[key] = f"--set {key}" if key.endswith("api_key_env") else f"--set {override}"


def _explain(error: ValidationError, data: dict[str, Any], places: dict[str, str], origin: str) -> list[str]:
    """One line for each wrong key. A value that fits no branch of a union has several errors."""
    reasons: dict[str, list[str]] = {}
    for details in error.errors(include_url=False):
        key = _dotted(details, data)
        reason = _unknown(key) if details["type"] == "extra_forbidden" else _wrong_value(details)
        if reason not in reasons.setdefault(key, []):
            reasons[key].append(reason)
    return [
        f"{_place(key, places, origin)}: {key or 'config'}: {' or '.join(why)}"
        for key, why in reasons.items()
    ]


def _dotted(details: ErrorDetails, data: Any) -> str:
    """The error's key. Its location also names branches of unions, which are not in the data: they end it."""
    names: list[str] = []
    for name in details["loc"]:
        in_list = isinstance(data, list) and isinstance(name, int) and name < len(data)
        if in_list or (isinstance(data, dict) and name in data):
            data = data[name]
        elif details["type"] == "missing" and name == details["loc"][-1]:
            data = None
        else:
            continue
        names.append(str(name))
    return ".".join(names)


def _place(key: str, places: dict[str, str], origin: str) -> str:
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, origin)


def _unknown(key: str) -> str:
    """The nearest key in the same section, else the same name in another section."""
    section, _, name = key.rpartition(".")
    siblings = [known for known in all_keys() if known.rpartition(".")[0] == section]
    hint = _did_you_mean(key, siblings)
    if not hint:
        elsewhere = [known for known in all_keys() if known.rpartition(".")[2] == name]
        hint = _did_you_mean(key, elsewhere or all_keys())
    names = ", ".join(known.rpartition(".")[2] for known in siblings)
    return f"unknown key{hint or f'; the keys here are: {names}'}"


def _wrong_value(details: ErrorDetails) -> str:
    if details["type"] == "missing":
        return "this key is required"
    message = details["msg"].removeprefix("Value error, ")
    if not message.startswith("Input should"):
        return message
    return f"{message.removeprefix('Input ')}, not {_kind(details['input'])}"


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    return (
        f"a {'section' if isinstance(value, dict) else 'list'}"
        if isinstance(value, dict | list)
        else repr(value)
    )


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def all_keys(model: type[BaseModel] = CampaignConfig, at: str = "") -> list[str]:
    """Every dotted key that a config may set, sections included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(f"{at}{name}")
        for section in _models_in(field.annotation):
            keys.extend(all_keys(section, f"{at}{name}."))
    return list(dict.fromkeys(keys))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models_in(inner)
