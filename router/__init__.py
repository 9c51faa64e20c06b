"""From hidden rows to expert outputs: gate, plan, dispatch over lanes, exact combine."""
