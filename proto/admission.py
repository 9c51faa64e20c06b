"""The initial metadata of a Generate call: it says that the worker has taken the sequence, before there is any token.

Knows nothing of sequences. A call that fails without it never ran.
"""

ADMITTED = "expertfleet-admitted"
