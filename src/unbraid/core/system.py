"""What published systems share: a card that describes each, and a base class that keeps its configuration and saves it.

The base class has no verbs. What a system does (``fit``, ``transform``, ``steer``, ``score``) is its own business.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from unbraid.core.errors import UnbraidError

# `unbraid.core.encoding` is imported where it is used: it needs numpy, which listing the systems does not

VERBS = ("see", "steer", "swap", "separate")
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class ClaimSpec:
    """One statement of a paper that its system puts to the test.

    Attributes:
        name: short name, the same as that of the measured `Claim`.
        statement: what is claimed, in our own words.
        source: where the paper says it: section, table or figure.
        paper: the paper's figure as text, or "" when the claim is only a direction.
    """

    name: str
    statement: str
    source: str
    paper: str = ""


@dataclass(frozen=True)
class Card:
    """What one published system is: data only, so that listing all of them imports no heavy library.

    Attributes:
        slug: the folder's name; lower case letters, digits and underscores.
        title: the paper's title.
        arxiv: the arXiv id, as in "2404.15574", or "" when there is none.
        year: of first publication.
        field: one lower-case word: language, speech, vision, diffusion, factors, retrieval, neuro, theory or another.
        verbs: what it is for, out of `VERBS`.
        extras: names of the optional dependencies it needs, as in ``pip install "unbraid[diffusion]"``.
        code: address of the official repository, or "".
        claims: what the system's study measures.

    Raises:
        UnbraidError: a field does not have the form said above.
    """

    slug: str
    title: str
    arxiv: str
    year: int
    field: str
    verbs: tuple[str, ...]
    extras: tuple[str, ...] = ()
    code: str = ""
    claims: tuple[ClaimSpec, ...] = ()

    def __post_init__(self) -> None:
        wrong = [
            ("slug", self.slug, "lower case letters, digits and _", re.fullmatch(r"[a-z][a-z0-9_]*", self.slug)),
            ("title", self.title, "text", self.title.strip()),
            ("arxiv", self.arxiv, "an id like 2404.15574, or ''", re.fullmatch(r"(\d{4}\.\d{4,5})?", self.arxiv)),
            ("year", self.year, "a year", isinstance(self.year, int) and 1900 < self.year < 2200),
            ("field", self.field, "one lower-case word", re.fullmatch(r"[a-z]+", self.field)),
            ("verbs", self.verbs, f"a tuple out of {VERBS}", _is_part_of(self.verbs, VERBS)),
            ("extras", self.extras, "a tuple of names", _is_part_of(self.extras, None)),
            ("claims", self.claims, "a tuple of ClaimSpec with different names", _are_claims(self.claims)),
        ]
        for name, given, accepted, fine in wrong:
            if not fine:
                raise UnbraidError(f"card of {self.slug!r}: {name} is {given!r}; it must be {accepted}.")

    @property
    def url(self) -> str:
        """The paper's page on arXiv, or "" without an id."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


def _is_part_of(names: object, allowed: tuple[str, ...] | None) -> bool:
    if not isinstance(names, tuple) or (allowed and not names):
        return False
    return all(isinstance(name, str) and name and (allowed is None or name in allowed) for name in names)


def _are_claims(claims: object) -> bool:
    if not isinstance(claims, tuple) or not all(isinstance(claim, ClaimSpec) for claim in claims):
        return False
    return len({claim.name for claim in claims}) == len(claims)


class System:
    """Base of all systems: constructor arguments are the configuration; what is learned ends in ``_``.

    A subclass stores each constructor argument unchanged under its own name, sets attributes that end in ``_`` when it
    learns something, and has the class attribute `card`. Then configuration and learned things can be read, cloned
    (also by ``sklearn.base.clone``), saved and loaded. Learned things may be numbers, text, containers, arrays,
    tensors, `HeadSet` and `HeadScores`; for a learned module, define `build_module`.
    """

    card: ClassVar[Card]

    @classmethod
    def _names(cls) -> list[str]:
        """Names of the constructor's arguments."""
        if cls.__init__ is object.__init__:
            return []
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise UnbraidError(
                    f"{cls.__name__}.__init__ takes *{parameter.name}; every option must be an argument with a name."
                )
        return [parameter.name for parameter in parameters]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The configuration: every constructor argument by name.

        Args:
            deep: also list, as ``outer__inner``, the configuration of arguments that are systems or estimators.
        """
        params = {name: vars(self)[name] if name in vars(self) else getattr(self, name) for name in self._names()}
        if deep:
            for name, value in list(params.items()):
                if hasattr(value, "get_params") and not isinstance(value, type):
                    params |= {f"{name}__{inner}": item for inner, item in value.get_params().items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Change the configuration in place; ``outer__inner=`` reaches into an argument that is a system.

        Raises:
            UnbraidError: there is no such argument.
        """
        known = self._names()
        for name in params:
            if name.partition("__")[0] not in known:
                raise UnbraidError(
                    f"{type(self).__name__} has no argument {name!r}; it has {', '.join(known) or 'none'}."
                )
        for name, value in params.items():
            outer, _, inner = name.partition("__")
            if inner:
                getattr(self, outer).set_params(**{inner: value})
            else:
                setattr(self, name, value)
        return self

    def get_learned(self) -> dict[str, Any]:
        """What has been learned: the public attributes whose names end in ``_``."""
        return {name: value for name, value in vars(self).items() if name.endswith("_") and not name.startswith("_")}

    def set_learned(self, learned: dict[str, Any]) -> None:
        """Put learned things back, as `get_learned` gave them; called by `from_pretrained` after construction."""
        for name, value in learned.items():
            setattr(self, name, value)

    def build_module(self, name: str) -> Any:
        """Make, without its weights, the module that is kept in the learned attribute ``name``.

        Called by `from_pretrained` after construction and after the other learned things are back. A system that
        learns a module overrides it.
        """
        raise UnbraidError(
            f"{type(self).__name__} learned a module {name!r} but does not define build_module to make it."
        )

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={_short(value)}" for name, value in self.get_params(deep=False).items())
        return f"{type(self).__name__}({inside})"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write configuration and learned things to a folder: ``config.json`` and ``model.safetensors``.

        Arguments that are objects of another library (a loaded model) are left out and noted: `from_pretrained` asks
        for them. Nothing is pickled. Each file is written under a temporary name and moved.

        Returns:
            The folder.

        Raises:
            UnbraidError: a learned attribute has a type that cannot be saved.
        """
        from unbraid.core.encoding import write_arrays, write_json

        arrays: dict[str, Any] = {}
        params = self.get_params(deep=False)
        config = {
            "unbraid_format": _FORMAT,
            "slug": self.card.slug,
            "class": type(self).__name__,
            "params": {name: _encode_param(name, value, arrays) for name, value in params.items()},
            "learned": {name: _encode_learned(name, value, arrays) for name, value in self.get_learned().items()},
        }
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        if arrays:
            config["weights"] = {"file": WEIGHTS_FILE, "sha256": write_arrays(arrays, target / WEIGHTS_FILE)}
        write_json(target / CONFIG_FILE, config)
        if not arrays:
            (target / WEIGHTS_FILE).unlink(missing_ok=True)
        return target

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **params: Any) -> Self:
        """Load what `save_pretrained` wrote: from a folder, or from a repository of the Hugging Face hub.

        Args:
            name: folder, or hub id as in "user/name".
            revision: branch, tag or commit on the hub.
            params: constructor arguments to replace the stored ones; needed for those that could not be stored.

        Raises:
            UnbraidError: nothing is there, the files do not belong together (an interrupted copy), they hold another
                system, or an argument that was left out on saving is not given.
        """
        from unbraid.core.encoding import TAG, decode

        folder = Path(name)
        if not folder.is_dir():
            folder = _download(str(name), revision)
        config = _read_config(folder)
        maker = cls._class_for(config, folder)
        known = maker._names()
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise UnbraidError(f"{maker.__name__} has no argument {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
        arrays = _read_weights(folder, config)
        stored = {key: value for key, value in config["params"].items() if key not in params}
        for key, value in stored.items():
            if isinstance(value, dict) and value.get(TAG) == "omitted":
                raise UnbraidError(
                    f"{folder} was saved without {key!r} (a {value['type']}); "
                    f"give it: {maker.__name__}.from_pretrained({str(name)!r}, {key}=...)."
                )
        system = maker(**decode(stored, arrays), **params)
        modules = {key: node for key, node in config["learned"].items() if _is_module_node(node)}
        system.set_learned({k: decode(node, arrays) for k, node in config["learned"].items() if k not in modules})
        for key, node in modules.items():
            module = system.build_module(key)
            module.load_state_dict(decode(node["state"], arrays))
            setattr(system, key, module)
        return system

    @classmethod
    def _class_for(cls, config: dict[str, Any], folder: Path) -> type[Self]:
        """The class to make: this one, or, asked of `System` itself, the class of the system that was saved."""
        maker: Any = cls
        if cls is System:
            from unbraid.core.registry import load_class

            maker = load_class(config["slug"])
        if maker.card.slug != config["slug"]:
            raise UnbraidError(
                f"{folder} holds the system {config['slug']!r}, not {maker.card.slug!r}: load it with that."
            )
        return maker

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, message: str | None = None
    ) -> str:
        """Save and upload to a model repository of the Hugging Face hub, which is created if need be.

        Args:
            repo_id: as in "user/name".
            private: whether a new repository is private; None takes the account's default.
            token: access token; None takes the one that ``hf auth login`` stored.
            message: of the commit.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi

        from unbraid.core.encoding import write_bytes

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save_pretrained(temporary)
            write_bytes(folder / "README.md", hub_card(self).encode("utf-8"))
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message or f"Upload {type(self).__name__}"
            )
        return str(commit.commit_url)


def hub_card(system: System) -> str:
    """The README of a repository on the hub: what was saved, from which paper, how to load it."""
    card = system.card
    source = f"[{card.title}]({card.url})" if card.url else card.title
    lines = [
        "---",
        "library_name: unbraid",
        f"tags: [unbraid, {card.slug}, {', '.join(card.verbs)}]",
        "---",
        f"# {type(system).__name__}",
        f"The system `{card.slug}` of Unbraid ({source}).",
        "```python",
        "from unbraid import System",
        f'system = System.from_pretrained("...")  # a {type(system).__name__}',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit and "\n" not in text else f"<{type(value).__name__}>"


def _is_module_node(node: Any) -> bool:
    return isinstance(node, dict) and node.get("$") == "module"


def _encode_param(name: str, value: Any, arrays: dict[str, Any]) -> Any:
    from unbraid.core.encoding import TAG, encode, leaves_out

    inside: dict[str, Any] = {}
    node = encode(value, inside, f"params.{name}", omit=True)
    if leaves_out(node):
        return {TAG: "omitted", "type": type(value).__name__}
    arrays |= inside
    return node


def _encode_learned(name: str, value: Any, arrays: dict[str, Any]) -> Any:
    from unbraid.core.encoding import TAG, encode

    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        state = {key: tensor.detach() for key, tensor in value.state_dict().items()}
        return {TAG: "module", "state": encode(state, arrays, name)}
    return encode(value, arrays, name)


def _download(repo_id: str, revision: str | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise UnbraidError(
            f"there is no folder {repo_id!r}; give a folder that save_pretrained wrote, or a hub id like user/name."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # the hub client raises a dozen classes; all mean that it could not be had
        reason = str(error).strip().splitlines()[0]
        raise UnbraidError(
            f"{repo_id!r} is neither a folder here nor could it be had from the Hugging Face hub ({reason}); "
            "give a folder that save_pretrained wrote, or a hub id that can be reached."
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnbraidError(f"{folder} has no {CONFIG_FILE}; give a folder that save_pretrained wrote.") from None
    except ValueError as error:
        raise UnbraidError(f"{path} is not JSON ({error}); save the system again.") from None
    if not isinstance(config, dict) or not {"unbraid_format", "slug", "params", "learned"} <= set(config):
        raise UnbraidError(f"{path} was not written by Unbraid; give a folder that save_pretrained wrote.")
    if config["unbraid_format"] != _FORMAT:
        raise UnbraidError(
            f"{path} has format {config['unbraid_format']!r}; this version reads {_FORMAT}: update Unbraid."
        )
    return config


def _read_weights(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    if "weights" not in config:
        return {}
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UnbraidError(f"{folder} has no {WEIGHTS_FILE}, which its {CONFIG_FILE} asks for; copy the whole folder.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != config["weights"]["sha256"]:
        raise UnbraidError(
            f"{path} does not belong to the {CONFIG_FILE} beside it: saving or copying was interrupted; do it again."
        )
    from unbraid.core.encoding import read_arrays

    return read_arrays(path, [config["params"], config["learned"]])
