"""Retries and errors of the Hub's client: transient errors are retried, all others become one clear HubError."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, ParamSpec, TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from vog_hf.errors import ConfigError, HubError, VoGError

logger = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try
TRANSIENT = (408, 429, 500, 502, 503, 504)
CONFLICTS = (409, 412)  # another commit is being made, or was made since ours was prepared
# Errors of the network have no class of the client's own; they come from httpx, or httpx2 in later versions.
NETWORK_ERRORS = {"TimeoutException", "NetworkError", "RemoteProtocolError"}
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]

P = ParamSpec("P")
T = TypeVar("T")


class Conflict(Exception):  # noqa: N818 (not an error: the commit is prepared again)
    """Another client commits to the repository."""


def connect(token: str | None) -> HfApi:
    """Create a client that acts as the owner of the token.

    Raises:
        ConfigError: An invalid token.
    """
    if token is not None and type(token) is not str:
        raise ConfigError(
            f"token must be text, got {type(token).__name__}; pass it as it is on huggingface.co/settings/tokens"
        )
    known = get_token() or "none" if token is None else token
    if not re.fullmatch(r"[!-~]+", known):
        where = "token" if token is not None else "the token of HF_TOKEN or `hf auth login`"
        raise ConfigError(
            f"{where} must be a text without spaces and line ends, as it is shown on huggingface.co/settings/tokens"
        )  # the token itself is never shown
    return HfApi(token=token, library_name="vog_hf", library_version=version("vog-hf"))


def require_writer(api: HfApi) -> str:
    """Return the name of the token's owner; raise HubError without a token that may write."""
    if not (api.token or get_token()):
        raise HubError(
            "pushing needs a token with write permission, got none; run `hf auth login`, or pass token=",
            argument="token=",
        )
    with hub_errors("the token cannot be checked"):
        account = with_retries(api.whoami)
    role = (account.get("auth", {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise HubError(
            f"the token of {account.get('name')} may only read; create one with write permission on "
            "huggingface.co/settings/tokens and pass it as token=",
            argument="token=",
        )
    return str(account["name"])


def with_retries(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return ``call(*args, **kwargs)``, with the retries of `retry_call`."""
    return retry_call(partial(call, *args, **kwargs))


def retry_call(call: Callable[[], T], *, conflicts: bool = False, waits: Sequence[float] = WAITS) -> T:
    """Return the result of a call, repeating it after transient errors of the server or the network.

    The client retries uploads and downloads itself, but not repository info, create, branch and commit. Its own
    `http_backoff` repeats one request, and these calls make several.

    Args:
        call: Called once, and once more after each wait.
        conflicts: Whether to call again after a `Conflict`, too.
        waits: Seconds before each further call.
    """
    for tries, wait in enumerate(waits, start=1):
        try:
            return call()
        except Conflict as error:
            if not conflicts:
                raise
            reason = str(error)
        except (CLIENT_ERROR, OSError) as error:
            if not is_transient(error):
                raise
            reason = described(error)
        logger.warning("the Hub: %s; try %d of %d in %g s", reason, tries + 1, len(waits) + 1, wait)
        time.sleep(wait)
    return call()


def is_transient(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, may be gone at the next try."""
    return any(
        status(seen) in TRANSIENT or NETWORK_ERRORS & {kind.__name__ for kind in type(seen).__mro__}
        for seen in error_causes(error)
    )


def error_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def status(error: BaseException) -> int | None:
    """The HTTP status of an error of the client; None without a response."""
    return getattr(getattr(error, "response", None), "status_code", None)


def described(error: BaseException) -> str:
    """An error in one line."""
    line = next((line for line in str(error).splitlines() if line.strip()), "").strip()
    server = getattr(error, "server_message", None)
    text = f"{line} ({server})" if server and str(server) not in line else line
    return text or type(error).__name__


@contextmanager
def hub_errors(
    what: str, left: str = "nothing was changed on the Hub", *, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn errors of the client into a HubError that says what was tried and how the repository is left.

    Args:
        what: The operation that failed.
        left: State of the repository.
        also: Further errors that the client raises there.
    """
    try:
        yield
    except VoGError:
        raise
    except Conflict as error:
        raise HubError(
            f"{what}: {error}, {len(WAITS) + 1} times; {left}; try again when no other client commits"
        ) from error
    except Exception as error:
        if not isinstance(error, (CLIENT_ERROR, OSError, *also)):
            raise
        reason = _reason(error)
        raise HubError(f"{what}: {reason}; {left}", argument="token=" if "token=" in reason else ()) from error


def _reason(error: BaseException) -> str:
    error = next((e for e in error_causes(error) if isinstance(e, CLIENT_ERROR)), error)
    advice: dict[Any, str] = {
        401: "the token is not valid (or no longer); run `hf auth login`, or pass another token=",
        403: "the token may not write there; use a token with write permission, or your own repository",
    }
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such dataset, or it is private; check the name, or pass a token that may read it"
    code = status(error)
    if code in advice:
        return f"{advice[code]} ({described(error)})"
    if is_transient(error):
        return f"the Hub failed several times ({described(error)}); try again later"
    return described(error)
