"""`python -m vog_hf`, and so `accelerate launch -m vog_hf score ...`: the command line."""

from vog_hf.cli import main

main()
