"""The arms of the comparison, their runs, and the tests between them."""
