"""Path patching on any decoder: what a head (or a set of them) sends to the inputs of others, measured in the answer.

from unbraid.core.patching import LOGITS, PathPatcher, receive

patcher = PathPatcher(model, clean_ids, corrupt_ids, answers, distractors)
direct = patcher.effects(LOGITS)                                  # every head into the final residual stream
movers = direct.scores().top(5)
patcher.effects(receive(movers, "q")).scores().ranked()[:3]       # every head into the queries of these
"""

from unbraid.core.patching.effects import Edges, Effects
from unbraid.core.patching.nodes import LOGITS, Mlp, Receiver, receive
from unbraid.core.patching.patcher import PathPatcher
from unbraid.core.patching.plain import PlainPatcher

__all__ = ["LOGITS", "Edges", "Effects", "Mlp", "PathPatcher", "PlainPatcher", "Receiver", "receive"]
