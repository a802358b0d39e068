"""Plan files that ship with the distribution; `scaling sweep NAME` finds them here."""
