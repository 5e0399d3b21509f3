"""The commands of srp-data; the only code that prints."""
