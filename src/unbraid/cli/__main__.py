"""``python -m unbraid.cli``: the same as ``unbraid``; accelerate starts its processes this way."""

from unbraid.cli.app import main

if __name__ == "__main__":
    main()
