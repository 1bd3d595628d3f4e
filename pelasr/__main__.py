"""`python -m pelasr` is `pelasr`."""

from pelasr.cli.main import main

if __name__ == "__main__":
    main()
