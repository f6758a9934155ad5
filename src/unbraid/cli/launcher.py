"""``python -m unbraid.cli.launcher``: accelerate's launcher, which leaves with the code of the process that failed."""

from __future__ import annotations

import logging
import sys


def launch(line: list[str]) -> int:
    """Hand the line to accelerate.

    Returns:
        The exit code of the process that failed first, or 0.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # its log of a failed process would bury the one sentence that the process itself has printed
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args(line))
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
