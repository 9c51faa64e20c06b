"""On the path of a process under test: its pairs are formed over gloo, which needs no GPU."""

from expertfleet.transport import pair_group

pair_group.BACKEND = "gloo"
