"""The `ice-client` command, also as `python -m client`.

Ctrl-C stops a running client cleanly, with status 0. Before and after that it ends the command here, with one line.
"""

import sys

_INTERRUPTED = 130  # as in shells: 128 plus the number of SIGINT

_UNWRITABLE = 1

_THREAD_TIMEOUT = 2.0  # seconds that threads of handlers have to end


def main() -> None:
    """Run the command and exit with its status."""
    try:
        # Inside the try: Ctrl-C may come during the import, which takes half a second.
        from client import platform  # noqa: PLC0415

        platform.open_standard_streams()
        import click  # noqa: PLC0415

        from client import cli  # noqa: PLC0415

        try:
            sys.exit(cli.main(prog_name="ice-client", standalone_mode=False))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            platform.exit_within(_THREAD_TIMEOUT, status)
            raise
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except OSError as error:  # commands handle every other failure themselves
            sys.stderr.write(f"ice-client: standard output cannot be written: {error.strerror}\n")
            sys.exit(_UNWRITABLE)
        except click.Abort:  # Ctrl-C, or the end of the input at a prompt
            raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        sys.stderr.write("ice-client: interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
