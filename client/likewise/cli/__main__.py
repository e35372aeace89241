"""`python -m likewise.cli`."""

from likewise.cli.main import main

if __name__ == "__main__":
    main()
