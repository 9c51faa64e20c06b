"""The error of this folder: what a person did or a machine lacks, in one line with the remedy."""


class ClusterError(Exception):
    """Ends a command with ``expertfleet: error: …`` and exit status 1."""
