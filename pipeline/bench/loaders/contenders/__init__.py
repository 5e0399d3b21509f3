"""Each loader that is measured, and the limits beside them; a file each."""
