"""What tests speak with: an ICE of our own making, and a gateway in this process."""
