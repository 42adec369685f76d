"""Ray's token, as its clients look for it."""

import os
import stat
from pathlib import Path

MODE, TEXT, PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def default_file() -> Path:
    """Where `ray get-auth-token --generate` and a first `ray.init()` put it."""
    return Path.home() / ".ray" / "auth_token"


def token_file() -> Path | None:
    """The file that Ray reads the token from, if it reads one that is there."""
    if os.environ.get(TEXT):
        return None
    path = Path(os.environ[PATH]).expanduser() if os.environ.get(PATH) else default_file()
    return path if path.is_file() else None


def token() -> str | None:
    """The token that clients here have, whether RAY_AUTH_MODE lets them send it or not; None: there is none."""
    if text := os.environ.get(TEXT):
        return text.strip()
    path = token_file()
    try:
        return path.read_text().strip() or None if path else None
    except OSError:
        return None


def others_can_read(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def is_sent() -> bool:
    """Whether Ray's clients in this environment send the token that they find."""
    return os.environ.get(MODE, "").lower() == "token"


def destination() -> str:
    """Where to copy a token to, so that it is the one that is found."""
    if os.environ.get(TEXT):
        return f"into {TEXT}, which hides any file"
    return f"to {os.environ.get(PATH) or default_file()}, chmod 600 it"
