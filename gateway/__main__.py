"""`python -m gateway` is `ice-gateway`."""

from gateway.cli import main

main()
