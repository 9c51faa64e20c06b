"""These run only where Triton was told to interpret before it was imported: test_triton_interpreted.py starts them."""

import importlib.util
import os

_chosen = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
collect_ignore_glob = [] if _chosen else ["test_*.py"]
