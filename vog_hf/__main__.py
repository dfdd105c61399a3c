"""The command line as `python -m vog_hf`, and thus `accelerate launch -m vog_hf score ...`."""

from vog_hf.cli import main

main()
