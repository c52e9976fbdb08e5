"""Credentials stay in the environment: settings and addresses that hold one are refused, and the refusal hides it.

What is refused needs no redaction later: settings and addresses are logged, stored with every run and shown by MLflow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from urllib.parse import parse_qsl

from hbt_ray.errors import ConfigError

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(\S*)")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # of password_file, apiKey, X-Amz-Security-Token, AWSAccessKeyId
CREDENTIALS = frozenset(
    ("password", "passwd", "passphrase", "secret", "token", "credential", "credentials", "signature", "sig", "apikey")
)
KEYS_TO = frozenset(("api", "access", "account", "private"))  # an access key, but not any key
NO_CREDENTIALS = frozenset(("tokens_per_token",))  # settings of ours that are only called like one
ANONYMOUS = "anonymous"  # gs://anonymous@bucket: a user who is none
FIX = (
    "Set it in the environment, where AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, HF_TOKEN and RAY_AUTH_TOKEN are looked for."
)


def names_a_credential(name: str) -> bool:
    """Whether a key or parameter is called like a password, secret, token, signature or access key."""
    name = name.rpartition(".")[2]
    words = [] if name in NO_CREDENTIALS else [word.lower() for word in WORD.findall(name)]
    return not CREDENTIALS.isdisjoint(words) or any(b == "key" and a in KEYS_TO for a, b in pairwise(words))


def holds_credentials(text: str) -> bool:
    """Whether an address in a text has a user before its host, or a parameter that is a credential."""
    return any(_is_signed_in(rest) for _, rest in ADDRESS.findall(text))


def _is_signed_in(rest: str) -> bool:
    """Of what follows the `://` of an address."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at and user != ANONYMOUS:
        return True
    port = authority.rpartition("]")[2].partition(":")[2]  # after an IPv6 address, if it is one
    if port and not port.isdigit() and "@" in rest:  # a password with a slash, as keys of AWS often have
        return True
    parameters = [pair for part in re.split(r"[?#]", rest)[1:] for pair in parse_qsl(part)]
    return any(
        names_a_credential(name) or "@" in value.partition("/")[0] or holds_credentials(value)
        for name, value in parameters
    )


def without_credentials(text: str) -> str:
    """A text for messages and files: of an address with credentials only the scheme is left."""
    return ADDRESS.sub(lambda found: f"{found[1]}://…" if _is_signed_in(found[2]) else found[0], text)


def refuse_credentials(where: str, text: str) -> None:
    """Raise ConfigError if an address in a text has credentials in it."""
    if holds_credentials(text):
        raise ConfigError(where, "credentials in the address", "the address without them", FIX)


def refuse_credentials_in(settings: object, source: str, place: str = "") -> None:
    """Raise ConfigError naming the key of the first credential in settings of any depth; `source` is their file.

    A credential is an address that holds one, or the value of a key that is called like one.
    """
    where = f"{source}: {place}" if place else source
    if isinstance(settings, str):
        refuse_credentials(where, settings)
    elif isinstance(settings, Mapping):
        for key, value in settings.items():
            refuse_credentials(where, str(key))
            inner = f"{place}.{key}" if place else str(key)
            if names_a_credential(str(key)) and not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {inner}", "a credential", "settings without any", FIX)
            refuse_credentials_in(value, source, inner)
    elif isinstance(settings, list | tuple):
        for i, value in enumerate(settings):
            refuse_credentials_in(value, source, f"{place}.{i}")
