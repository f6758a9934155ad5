"""Texts to look for sinks in: what a model writes itself when asked for a solution, and plain English."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import write

NAMES = ("Amina", "Boris", "Chloe", "Dmitri", "Esther", "Farid", "Greta", "Hugo", "Ines", "Jonas")
GOODS = ("apples", "pencils", "tickets", "bricks", "candles", "marbles", "stamps", "loaves of bread")
PROBLEMS = (
    "{a} buys {x} {g} on Monday and {y} times as many on Tuesday. On Wednesday {a} gives {z} of them to {b}. How many "
    "{g} does {a} have left?",
    "A shop packs {g} into boxes of {x}. It has {y} full boxes and {z} single {g}. {a} orders {w} of them. How many "
    "{g} are left in the shop, and how many full boxes can they fill?",
    "{a} and {b} walk towards each other from two towns that are {d} kilometres apart. {a} walks {y} kilometres an "
    "hour and {b} {v} kilometres an hour. After how many hours do they meet, and how far has each walked?",
    "The sum of three consecutive whole numbers is {s}. What is the product of the smallest and the largest?",
    "{a} saves {x} coins in the first week and {y} coins more in every week than in the week before. How many coins "
    "does {a} have after {v} weeks?",
    "A rectangle is {y} centimetres longer than it is wide, and its perimeter is {p} centimetres. What is its area?",
)


def problem(seed: int) -> str:
    """A small word problem; the same seed gives the same problem."""
    r = np.random.default_rng(seed)
    a, b = r.choice(NAMES, 2, replace=False)
    x, y, z, v, w = (int(r.integers(low, high)) for low, high in ((12, 40), (3, 9), (2, 11), (3, 8), (20, 60)))
    text = str(r.choice(PROBLEMS)).format(
        a=a, b=b, g=r.choice(GOODS), x=x, y=y, z=z, v=v, w=w, d=(y + v) * int(r.integers(2, 9)),
        s=3 * int(r.integers(15, 90)), p=2 * (y + 2 * int(r.integers(4, 20))),
    )  # fmt: skip
    return text + " Think step by step, check every step, and explain your reasoning in detail before you answer."


def prompt_ids(tokenizer: Any, question: str) -> Tensor:
    """[1, tokens] of a question, through the tokenizer's chat template where there is one."""
    if tokenizer.chat_template:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
    else:
        ids = tokenizer(question + "\n", return_tensors="pt")["input_ids"]
    return torch.as_tensor(ids)


@torch.no_grad()
def own_traces(
    model: Any,
    tokenizer: Any,
    count: int = 8,
    tokens: int = 512,
    seed: int = 0,
    temperature: float = 0.0,
    keep: Path | None = None,
    on_trace: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Word problems with what the model itself answers: [1, tokens] each, prompt included.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        count: how many traces.
        tokens: to generate at the most; a trace ends earlier when the model ends it.
        seed: of the problems, and of sampling.
        temperature: 0 decodes greedily, as the paper does.
        keep: folder for finished traces; a later call reads them back.
        on_trace: called with how many are done.

    Raises:
        UnbraidError: a count is not positive, or the temperature negative.
    """
    if count < 1 or tokens < 1 or temperature < 0:
        raise UnbraidError(
            f"count={count}, tokens={tokens}, temperature={temperature}: counts are 1 or more, 0 is greedy."
        )
    made = []
    for i in range(count):
        path = None if keep is None else Path(keep) / f"trace-{seed}-{i}-{tokens}-{temperature:g}.json"
        if path is not None and path.is_file():
            made.append(torch.tensor([json.loads(path.read_text(encoding="utf-8"))["ids"]]))
        else:
            ids = prompt_ids(tokenizer, problem(seed * 10_000 + i)).to(model.device)
            torch.manual_seed(seed * 10_000 + i)
            options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            if temperature:
                options = {"do_sample": True, "temperature": temperature}
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **options).cpu()
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                data = json.dumps({"ids": out[0].tolist(), "text": tokenizer.decode(out[0])})
                write(path, partial(Path.write_text, data=data, encoding="utf-8"))
            made.append(out)
        if on_trace is not None:
            on_trace(i + 1)
    return made


def read_text(path: Path, tokenizer: Any, limit: int) -> Tensor:
    """[1, tokens] of a UTF-8 file, with the tokenizer's own special tokens, cut at `limit`.

    Raises:
        UnbraidError: the file cannot be read, is no text or is empty.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UnbraidError(f"{path} cannot be read ({error.strerror}); give a UTF-8 text file.") from None
    except UnicodeDecodeError:
        raise UnbraidError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    if not content.strip():
        raise UnbraidError(f"{path} holds no text.")
    ids = tokenizer(content, return_tensors="pt", verbose=False)["input_ids"][:, :limit]
    if ids.shape[1] < 16:
        raise UnbraidError(f"{path} has {ids.shape[1]} tokens; 16 or more are needed to look for sinks.")
    return torch.as_tensor(ids)
