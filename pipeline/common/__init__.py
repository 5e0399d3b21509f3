"""What both programs share: errors, progress, the log, whole files, locks."""
