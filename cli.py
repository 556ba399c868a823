"""`python cli.py …` from a checkout; installed, the same is `tgbn …`."""

from gradcheck.cli import main

main()
