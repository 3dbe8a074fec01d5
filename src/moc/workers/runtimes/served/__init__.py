"""What the runtime `command` is made of: a server of the user's own, started and spoken to."""
