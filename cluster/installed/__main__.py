"""`dynframe …` and `python -m dynframe_rl …`, from a wheel and from a checkout."""

from dynframe_rl import activate

activate()

from rl.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
