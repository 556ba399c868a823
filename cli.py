"""`python cli.py …` from a checkout; installed, the same is `tgbn …`."""

from gradcheck.cli import main

if __name__ == "__main__":  # processes that `calibrate --jobs` starts import this file
    main()
