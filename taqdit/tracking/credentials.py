"""Is W&B set up on this machine? Answered from files and environment, never over the network."""

from __future__ import annotations

import configparser
import logging
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

MODES = ("online", "offline", "disabled")
_log = logging.getLogger(__name__)
# W&B's own cloud answers under both names; a login may have been stored under either.
_CLOUD = ("api.wandb.ai", "api.forge.coreweave.com")


def resolve_mode(asked: str) -> str:
    """The mode to start W&B in: online, offline or disabled.

    `auto` follows WANDB_MODE, then W&B's settings files, then whether a key is configured.
    Online without a key becomes offline with a warning: W&B would ask for one.
    """
    settings = _settings()
    if asked == "auto":
        asked = _spelled(os.environ.get("WANDB_MODE", "")) or _spelled(settings.get("mode", ""))
        if not asked:
            return "online" if _key_configured(settings) else "offline"
    if asked == "online" and not _key_configured(settings):
        _log.warning(
            "W&B: no key configured, so this run is kept offline; "
            "set WANDB_API_KEY or run `wandb login` to go online"
        )
        return "offline"
    return asked


def key_configured() -> bool:
    """Whether a key for W&B is set up on this machine."""
    return _key_configured(_settings())


def _key_configured(settings: dict[str, str]) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    if settings.get("api_key") or settings.get("identity_token_file"):
        return True
    return any(_in_netrc(host) for host in _hosts(settings))


def _spelled(mode: str) -> str:
    """W&B's older and rarer names for the three modes; empty for none or an unknown one."""
    mode = {"dryrun": "offline", "run": "online", "shared": "online"}.get(mode, mode)
    if mode and mode not in MODES:
        _log.warning("W&B: mode %r is unknown (allowed: %s): ignored", mode, ", ".join(MODES))
        return ""
    return mode


def _hosts(settings: dict[str, str]) -> tuple[str, ...]:
    url = os.environ.get("WANDB_BASE_URL") or settings.get("base_url", "")
    host = urlsplit(url).netloc
    return _CLOUD if not host or host in _CLOUD or host == "forge.coreweave.com" else (host,)


def _in_netrc(host: str) -> bool:
    try:
        login = netrc.netrc(_netrc_path()).authenticators(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    return bool(login and login[2])


def _netrc_path() -> Path:
    if named := os.environ.get("NETRC"):
        return Path(named).expanduser()
    found = [path for name in (".netrc", "_netrc") if (path := Path.home() / name).exists()]
    return found[0] if found else Path.home() / ".netrc"


def _settings() -> dict[str, str]:
    """W&B's settings files: the user's, then the one beside the working directory."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    beside = Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings"
    merged: dict[str, str] = {}
    for path in (Path(folder).expanduser() / "settings", beside):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
            merged.update(parser["default"] if parser.has_section("default") else {})
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
    return merged
