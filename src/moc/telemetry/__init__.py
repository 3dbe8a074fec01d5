"""What the coordinator says of itself: metrics and logs."""
