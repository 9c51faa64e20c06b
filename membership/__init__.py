"""Who is in the fleet: seats, leases, epochs, and the clients that follow them."""
