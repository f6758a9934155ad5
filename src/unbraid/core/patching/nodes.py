"""Senders and receivers of a path, as users name them and as layer and head numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import Head, HeadSet

Channel = Literal["q", "k", "v", "mlp", "logits"]
CHANNELS = ("q", "k", "v", "mlp", "logits")
Node = tuple[int, int]  # (layer, head); head -1 is the layer's MLP
MLP = -1


class Mlp(NamedTuple):
    """The MLP of a layer, as a sender."""

    layer: int


class Receiver(NamedTuple):
    """An input that listens to a sender.

    Attributes:
        channel: "q", "k" or "v" of a head, "mlp" (what the MLP of a layer reads) or "logits" (the final residual
            stream).
        site: attention of the head, as `attach` names it.
        head: query head, from 0; under grouped-query attention "k" and "v" are this query head's own view of the
            keys and values of its group. All query heads of a group together are the group itself.
        layer: of the MLP.
    """

    channel: Channel
    site: str = ""
    head: int = -1
    layer: int = -1


LOGITS = Receiver("logits")
Sender = Head | Mlp | Iterable["Head | Mlp"]
Receivers = Receiver | Iterable[Receiver]


def receive(heads: HeadSet | Iterable[Head], channels: str | Iterable[str]) -> list[Receiver]:
    """The receivers of every head in every channel.

    Args:
        heads: which heads.
        channels: "q", "k", "v" or several ("kv" and ("k", "v") are the same).

    Raises:
        UnbraidError: a channel that heads do not have.
    """
    asked = list(channels)
    wrong = [c for c in asked if c not in ("q", "k", "v")]
    if wrong or not asked:
        raise UnbraidError(f"receive: a head has the channels 'q', 'k' and 'v', not {channels!r}.")
    return [Receiver(c, site, head) for c in asked for site, head in HeadSet(heads)]  # type: ignore[arg-type]


class Names:
    """Translates between sites and layer numbers.

    Args:
        sites: attention of each layer, in order of depth.
        heads: query heads of each layer.
        mlps: whether a layer has an MLP that can be read.
    """

    def __init__(self, sites: Sequence[str], heads: Sequence[int], mlps: Sequence[bool]) -> None:
        self.sites, self.heads, self.mlps = list(sites), list(heads), list(mlps)
        self.layer = {site: i for i, site in enumerate(sites)}

    def all_heads(self) -> list[Head]:
        """Every head of the model."""
        return [(site, h) for site, n in zip(self.sites, self.heads, strict=True) for h in range(n)]

    def node(self, sender: object) -> Node:
        """Layer and head of one sender.

        Raises:
            UnbraidError: the model has no such head or MLP.
        """
        if isinstance(sender, Mlp):
            return self._layer_of_mlp(sender.layer), MLP
        if isinstance(sender, tuple) and len(sender) == 2 and isinstance(sender[0], str):
            return self._head(sender[0], int(sender[1]))
        raise UnbraidError(f"A sender is a head (site, number), Mlp(layer) or a set of these, not {sender!r}.")

    def nodes(self, sender: Sender) -> frozenset[Node]:
        """The nodes of a sender: one, or those of a joint set."""
        single = isinstance(sender, Mlp) or (
            isinstance(sender, tuple) and len(sender) == 2 and isinstance(sender[0], str)
        )
        found = frozenset([self.node(sender)] if single else [self.node(one) for one in sender])
        if not found:
            raise UnbraidError("A joint sender needs at least one head or MLP; this set is empty.")
        return found

    def receivers(self, given: Receivers) -> tuple[Receiver, ...]:
        """Receivers, checked, each once.

        Raises:
            UnbraidError: no receiver, or one that the model does not have.
        """
        listed = [given] if isinstance(given, Receiver) else list(given)
        if not listed:
            raise UnbraidError("Path patching needs at least one receiver: LOGITS, or receive(heads, 'q').")
        for r in listed:
            if not isinstance(r, Receiver) or r.channel not in CHANNELS:
                raise UnbraidError(f"A receiver is LOGITS, receive(heads, 'q') or Receiver('mlp', layer=3), not {r!r}.")
            if r.channel == "mlp":
                self._layer_of_mlp(r.layer)
            elif r.channel != "logits":
                self._head(r.site, r.head)
        return tuple(dict.fromkeys(listed))

    def depth(self, receiver: Receiver) -> int:
        """Layer of a receiver; the number of layers for the logits."""
        if receiver.channel == "logits":
            return len(self.sites)
        return receiver.layer if receiver.channel == "mlp" else self.layer[receiver.site]

    def label(self, nodes: frozenset[Node]) -> str:
        """Short name such as L3H5, M4 or L3H5+M4."""
        return "+".join(f"M{layer}" if h == MLP else f"L{layer}H{h}" for layer, h in sorted(nodes))

    def reaches(self, nodes: frozenset[Node], receiver: Receiver) -> bool:
        """Whether a path exists: heads reach later layers and their own layer's MLP, MLPs later layers only."""
        depth = self.depth(receiver)
        own = receiver.channel == "mlp"
        return any(layer < depth or (own and layer == depth and h != MLP) for layer, h in nodes)

    def _head(self, site: str, head: int) -> Node:
        if site not in self.layer:
            raise UnbraidError(f"{site!r} is no attention of this model; its first is {self.sites[0]!r}.")
        layer = self.layer[site]
        if not 0 <= head < self.heads[layer]:
            raise UnbraidError(f"{site!r} has heads 0 to {self.heads[layer] - 1}, not {head}.")
        return layer, head

    def _layer_of_mlp(self, layer: int) -> int:
        if not 0 <= layer < len(self.sites):
            raise UnbraidError(f"This model has layers 0 to {len(self.sites) - 1}, not {layer}.")
        if not self.mlps[layer]:
            raise UnbraidError(f"Layer {layer} has no MLP as one module, so it can neither send nor receive.")
        return layer
