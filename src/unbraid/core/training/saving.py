"""When checkpoints are written and what is read from them: the bridge between the loop and the files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbraid.core.encoding import encode, write_arrays
from unbraid.core.errors import UnbraidError
from unbraid.core.training import checkpoint, rng
from unbraid.core.training.history import History

if TYPE_CHECKING:
    from unbraid.core.training.loop import Loop

log = logging.getLogger("unbraid.train")


class Saver:
    """Writes and reads the checkpoints of one run."""

    def __init__(self, root: Path, keep: int, settings: dict[str, Any]) -> None:
        self.root, self.keep, self.settings = root, keep, settings
        self.last: int | None = None

    def start(self, loop: Loop, resume: bool) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            UnbraidError: there is one although a fresh start was asked for, or it is of another run.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UnbraidError(f"checkpoint_dir {self.root} is a file; give a folder.")
        self.frozen = checkpoint.Frozen(loop.module)
        encode(self._state(loop), {}, "state")  # what cannot be saved is better known now than at the first checkpoint
        steps = checkpoint.steps_in(self.root)
        if not steps:
            return
        if not resume:
            raise UnbraidError(
                f"checkpoint_dir {self.root} holds a run up to step {steps[-1]}; give another folder, or resume=True."
            )
        self.last = steps[-1]
        folder = checkpoint.folder_of(self.root, self.last)
        try:
            state = checkpoint.read_state(folder, "state")
        except (OSError, ValueError, KeyError) as error:
            raise UnbraidError(
                f"the checkpoint {folder} cannot be read ({error}); remove it to go on from the one before."
            ) from None
        self._check(state, folder, loop)
        checkpoint.load_weights(folder, loop.module, self.frozen, state)
        self._restore(state, folder, loop)
        log.info("resumed from step %d", self.last)

    def _check(self, state: dict[str, Any], folder: Path, loop: Loop) -> None:
        if state["format"] != checkpoint.FORMAT:
            raise UnbraidError(f"{folder} has format {state['format']!r}; this version reads {checkpoint.FORMAT}.")
        for name, value in self.settings.items():
            if state["settings"].get(name) != value:
                raise UnbraidError(
                    f"{folder} was written with {name}={state['settings'].get(name)!r}, now {name}={value!r}; give the "
                    "same, or another folder to start anew."
                )
        if state["step"] > loop.options.steps:
            raise UnbraidError(
                f"{folder} is beyond steps={loop.options.steps}; ask for more steps, or give another folder."
            )

    def _restore(self, state: dict[str, Any], folder: Path, loop: Loop) -> None:
        # the frozen weights are those of the run's start, whatever the checkpoint has made of them by now
        self.frozen.sums = dict(state["frozen"])
        loop.optimizer.load_state_dict(state["optimizer"])
        if loop.scheduler is not None:
            loop.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:
            loop.scaler.load_state_dict(state["scaler"])
        loop.history = History(**{**state["history"], "resumed_from": state["step"], "stopped": ""})
        loop.done = state["step"]
        loop.earlier = state["seconds"]
        loop.stream.seek(tuple(state["position"]))
        name = f"rng-{loop.accelerator.process_index:05d}"
        if (folder / f"{name}.json").is_file():  # with more processes than before, the new ones keep their fresh seeds
            rng.set_state(checkpoint.read_state(folder, name), loop.device)

    def _state(self, loop: Loop) -> dict[str, Any]:
        _, others = checkpoint.split_state(loop.module)
        return {
            "format": checkpoint.FORMAT,
            "step": loop.done,
            "settings": self.settings,
            "position": list(loop.stream.position),
            "seconds": loop.seconds,
            "history": loop.history.to_dict(),
            "frozen": self.frozen.sums,
            "module": others,
            "optimizer": loop.optimizer.state_dict(),
            "scheduler": None if loop.scheduler is None else loop.scheduler.state_dict(),
            "scaler": loop.scaler.state_dict(),
        }

    def save(self, loop: Loop) -> None:
        """Write a checkpoint of where the loop is, unless there is one; all processes take part."""
        if self.last == loop.done or loop.done == 0:
            return
        accelerator = loop.accelerator
        if accelerator.is_main_process:
            part = checkpoint.begin(self.root, loop.done)
        accelerator.wait_for_everyone()
        part = checkpoint.part_of(self.root, loop.done)
        checkpoint.write_state(part, f"rng-{accelerator.process_index:05d}", rng.get_state(loop.device))
        if accelerator.is_main_process:
            tensors, _ = checkpoint.split_state(loop.module)
            write_arrays(self.frozen.changed(tensors), part / checkpoint.WEIGHTS_FILE)
            checkpoint.write_state(part, "state", self._state(loop))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            checkpoint.finish(self.root, loop.done, self.keep)
        accelerator.wait_for_everyone()
        self.last = loop.done
