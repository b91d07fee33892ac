"""`python -m client` is the `ice-client` command."""

from client.cli import main

if __name__ == "__main__":
    main(prog_name="ice-client")
