"""How weights change: optimizer, schedule, moving average."""
