"""The command line, ``unbraid``: list systems and models, run studies, read results, look at the heads of any model.

Importing it and asking for help or lists imports no torch; each command imports what it needs when it is called.
"""

from unbraid.cli.app import app, main

__all__ = ["app", "main"]
