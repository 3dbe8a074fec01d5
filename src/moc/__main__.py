"""`python -m moc` and the `moc` command."""

from moc.cli.main import main

if __name__ == "__main__":
    main()
