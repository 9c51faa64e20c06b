"""The controller: who is a member, who holds which expert, and what the fleet should be."""
