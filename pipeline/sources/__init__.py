"""Where images come from: a folder, or an archive that is never extracted."""
