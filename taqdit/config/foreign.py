"""YAML that somebody else may have written: settings and nothing else, or refused unread.

Hydra takes experiment files and whole folders of them (`--config-dir`, `hydra.searchpath`) as they
are: a few hundred bytes of aliases cost it minutes, and what stands under `hydra` can choose code.
The command line, and the files that ship with taqdit, are trusted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import yaml  # type: ignore[import-untyped]
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from taqdit.errors import ConfigError
from taqdit.store.secrets import is_secret_name

MAX_BYTES = 64 * 1024
MAX_FILES = 1_000
MAX_DEPTH = 50  # of nested lists and mappings; a reader that recurses stops at some hundreds
TRUSTED = ("config.yaml", "hydra")  # of conf/: taqdit's own settings of Hydra
OWN = ("local",)  # settings of one machine, made there
ALLOWED = ("mode", "run", "sweep", "sweeper")  # of Hydra's own settings
_TOKENS = {
    yaml.AnchorToken: "an anchor",
    yaml.AliasToken: "an alias",
    yaml.TagToken: "a tag",
    yaml.DirectiveToken: "a directive",
}
_OPENING = ("[", "{", "<block sequence start>", "<block mapping start>")
_CLOSING = ("]", "}", "<block end>")
_INTO_HYDRA = re.compile(
    r"^#[ \t]*@package[ \t]+.*hydra|^[^#\n]*@[\w.]*hydra[\w.]*[ \t]*:", re.MULTILINE
)
_SEARCHPATH = re.compile(r"\+*hydra\.searchpath=\[?(.*?)\]?\Z", re.DOTALL)


def refuse_code(arguments: Sequence[str], conf: Path) -> None:
    """Raise ConfigError if a file that `arguments` may make Hydra read holds more than settings.

    `conf` is taqdit's own folder, to whose groups people add files.
    """
    for path in _files(conf):
        if (group := path.relative_to(conf).parts[0]) not in TRUSTED:
            _refuse(path, hydra=group in OWN)
    for folder in _folders(arguments):
        if (inside := folder / "hydra").exists():
            raise ConfigError(
                f"{inside}: options of Hydra's own are not taken from another folder; give them"
                " on the command line"
            )
        for path in _files(folder):
            try:
                _refuse(path, hydra=False)
            except ConfigError as error:  # Hydra could be led to any file below
                hint = f"(every file below {folder} counts: keep settings in a folder of their own)"
                raise ConfigError(f"{error} {hint}") from error


def _folders(arguments: Sequence[str]) -> Iterator[Path]:
    """Where Hydra is told to look for more files."""
    known, others = get_args_parser().parse_known_args(list(arguments))
    if known.config_path:
        raise ConfigError(
            f"--config-path={known.config_path} would take the place of taqdit's configuration; use"
            " --config-dir, which adds to it"
        )
    if known.config_dir:
        yield Path(known.config_dir)
    for argument in (*known.overrides, *others):
        if match := _SEARCHPATH.match(argument):
            for part in match[1].split(","):
                place = urlparse(part.strip().strip("'\""))
                if place.scheme in ("", "file") and place.path:
                    yield Path(unquote(f"{place.netloc}{place.path}"))


def _files(folder: Path) -> list[Path]:
    paths = (path for path in sorted(folder.rglob("*.y*ml")) if path.suffix in (".yaml", ".yml"))
    files = list(islice(paths, MAX_FILES + 1))
    if len(files) > MAX_FILES:
        raise ConfigError(
            f"{folder} holds more than {MAX_FILES:,} files; name a folder of settings"
        )
    return files


def _refuse(path: Path, *, hydra: bool) -> None:
    """Raise ConfigError unless the file holds settings; `hydra`: also of Hydra itself."""
    text = _text(path)
    if any(mark in text for mark in "&*!%") or _may_be_deep(text):
        _refuse_tokens(path, text)
    if "hydra" in text and not hydra:
        _refuse_hydra(path, text)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES or not path.is_file():
            raise ConfigError(f"{path} is no file of at most {MAX_BYTES:,} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text ({error})") from error


def _may_be_deep(text: str) -> bool:
    """A quick look, so that plain files are not scanned."""
    return sum(map(text.count, ("[", "{", "- ", "? "))) > MAX_DEPTH or " " * MAX_DEPTH in text


def _refuse_tokens(path: Path, text: str) -> None:
    """Aliases cost exponential time, tags choose types, depth breaks a reader."""
    depth = 0
    try:
        for token in yaml.scan(text):
            depth += token.id in _OPENING
            depth -= token.id in _CLOSING
            if depth > MAX_DEPTH:
                raise ConfigError(f"{path} nests more than {MAX_DEPTH} levels deep")
            if (what := _TOKENS.get(type(token))) is not None:
                line = token.start_mark.line + 1
                raise ConfigError(f"{path}, line {line}: {what} is not allowed; write values out")
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def _refuse_hydra(path: Path, text: str) -> None:
    """Under `hydra`, loggers, callbacks, launchers and variables choose code."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    settings = content.get("hydra") if isinstance(content, Mapping) else None
    keys = (
        list(settings) if isinstance(settings, Mapping) else [] if settings is None else ["hydra"]
    )
    wrong = [str(key) for key in keys if key not in ALLOWED]
    if _INTO_HYDRA.search(text) or wrong or _holds_target(settings):
        named = f"hydra.{wrong[0]}" if wrong else "hydra"
        raise ConfigError(
            f"{path} sets {named}, which can choose code; a file may set hydra."
            f"{', hydra.'.join(ALLOWED)} without _target_; give the rest on the command line"
        )


def _holds_target(node: Any) -> bool:
    if isinstance(node, Mapping):
        return "_target_" in node or any(map(_holds_target, node.values()))
    return isinstance(node, list) and any(map(_holds_target, node))


def _environment(name: str, *default: Any) -> Any:
    """`${oc.env:NAME}` as OmegaConf has it, but of nothing that is secret by its name."""
    if is_secret_name(name):
        raise ValueError(f"{name} is not for a configuration, which is written down")
    if name in os.environ:
        return os.environ[name]
    if not default:
        raise KeyError(f"Environment variable '{name}' not found")
    return None if default[0] is None else str(default[0])


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
