"""The commands of srp-train."""
