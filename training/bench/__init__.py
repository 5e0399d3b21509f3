"""How fast a step is, what it waits for, and what the machine allows."""
