"""What is measured, run from the root of the repository: `python -m benchmarks.NAME --help`."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's memory profiler prints a line per use otherwise
