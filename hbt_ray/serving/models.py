"""A model that every node of a cluster can find."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hbt_ray.commands import output_root
from hbt_ray.errors import ConfigError
from hbt_ray.model.encoder import EncoderSettings, check_folder, read_settings, resolve_backbone
from hbt_ray.model.export import model_hash
from hbt_ray.tracking.registry import MODELS_SCHEME, download_model, existing_store, resolve_address
from hbt_ray.tracking.runs import Store

RUNS = "runs"  # the output folder whose store is meant where no server is named
NO_PROMPT = "none"


@dataclass(frozen=True)
class ServedModel:
    """A model folder, or a version of a registered model.

    Args:
        address: as the user wrote it, but with the version that an alias stood for.
        folder: its files on the machine that looked it up.
        model_hash: of its files.
        store: where `models:/` addresses are looked up; None for a folder.
    """

    address: str
    folder: Path
    model_hash: str
    store: Store | None

    def here(self) -> Path:
        """Its folder on the machine this runs on, downloaded if it is not there. Raises ModelError, ResourceError."""
        if self.store is None or self.folder.is_dir():
            check_folder(self.folder)
            return self.folder
        return download_model(self.address, self.store)[0]

    @property
    def settings(self) -> EncoderSettings:
        """Pooling, prompts and truncation."""
        return read_settings(self.folder)


def find_model(address: str) -> ServedModel:
    """The model of a folder, `package:NAME`, or `models:/` address.

    Raises:
        ModelError: no such folder, package, model, version or alias.
        ResourceError: the registry does not serve.
    """
    if not address.startswith(MODELS_SCHEME):
        folder = Path(resolve_backbone(address)).expanduser().absolute()
        check_folder(folder)
        return ServedModel(str(folder), folder, model_hash(folder), None)
    store = existing_store(output_root(RUNS))
    version = resolve_address(address, store)
    folder, _ = download_model(version.address, store)
    return ServedModel(version.address, folder, model_hash(folder), store)


def prefix_of(settings: EncoderSettings, prompt: str) -> str:
    """What stands before every text behind a prompt: query, passage or none. Raises ConfigError."""
    prefixes = {"query": settings.query_prefix, "passage": settings.passage_prefix, NO_PROMPT: ""}
    if prompt not in prefixes:
        raise ConfigError("--prompt", repr(prompt), f"one of {', '.join(prefixes)}", "Choose one of these.")
    return prefixes[prompt]
