"""Tasks as pairs of prompts that differ in one place, token by token aligned, for any tokenizer with offsets.

    from unbraid.data.prompts import indirect_object

    prompts = indirect_object(tokenizer, 100, seed=0)
    prompts[0].text, prompts[0].answer     # 'Then, Mary and John went to the store. John gave a bag to', ' Mary'
    prompts[0].places["S2"]                # token positions of the repeated name

`TASKS` has all four by name. Needs no torch.
"""

from collections.abc import Callable

from unbraid.data.prompts.capitals import world_capitals
from unbraid.data.prompts.ioi import indirect_object
from unbraid.data.prompts.objects import coloured_objects
from unbraid.data.prompts.pairs import PromptPair, PromptSet
from unbraid.data.prompts.years import greater_than

TASKS: dict[str, Callable[..., PromptSet]] = {
    "ioi": indirect_object,
    "coloured_objects": coloured_objects,
    "greater_than": greater_than,
    "capitals": world_capitals,
}

__all__ = [
    "TASKS",
    "PromptPair",
    "PromptSet",
    "coloured_objects",
    "greater_than",
    "indirect_object",
    "world_capitals",
]
