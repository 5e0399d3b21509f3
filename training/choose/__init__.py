"""Out-of-fold losses, and the proposer that is fitted to them."""
