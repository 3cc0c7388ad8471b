"""`python -m rl …` is `dynframe …`, for places where the console script is not on the path."""

from rl.cli.main import main

main()
