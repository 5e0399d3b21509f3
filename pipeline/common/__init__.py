"""What both programs share: errors, the console, the log, whole files, locks."""
