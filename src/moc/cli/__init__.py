"""The `moc` command: one file per noun."""
