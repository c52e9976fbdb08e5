"""What every step trains on: the batch plan and the Ray Data stream that follows it."""
