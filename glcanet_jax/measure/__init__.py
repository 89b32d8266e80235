"""What networks cost: parameters, operations, memory on a device that need not be there."""
