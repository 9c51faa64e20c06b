"""What every HTTP endpoint of the gateway shares."""
