"""Validation of names on the Hub, before any request."""

from vog_hf.errors import ConfigError, shown


def require_repo_id(repo_id: object) -> None:
    """Raise ConfigError unless this is a valid name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # is found at run time

    try:
        if not isinstance(repo_id, str) or not repo_id:
            raise HFValidationError("it is not a name")  # noqa: TRY301 (said below)
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(
            f"repo_id must be 'user/name' or 'name', got {shown(repo_id)}: {error}; pass the name as the Hub shows it"
        ) from error
