"""`python -m cnnlab` is the `cnnlab` command."""

from cnnlab.cli.main import main

main()
